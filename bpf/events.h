/* Events: one per incident, never one per packet.
 *
 * An incident is a source and a reason. The first packet tells it; while it lasts it is told again every incident_ns
 * with the number of packets so far. All events share one budget per CPU, because sources can be forged at will.
 */
#ifndef TG_EVENTS_H
#define TG_EVENTS_H

#include "budgets.h"

/* Returns how many packets the incident has cost, or 0 when it need not be told now. */
static __always_inline __u32 incident_news(const struct reflex *r, const struct tg_knobs *k, __u32 reason)
{
    const struct address *who = reason == TG_SYN_FLOOD ? &r->packet.dest : &r->packet.source;
    __u64 tag = address_hash(who, k->seed ^ reason);
    struct tg_incident *incident = incident_at(tag);

    if (!incident)
        return 0;
    if (incident->tag != tag) {
        incident->tag = tag;
        incident->told = r->tick;
        incident->packets = 1;
        return 1;
    }
    incident->packets++;
    if (((__u64)(r->tick - incident->told) << 20) < k->incident_ns)
        return 0;
    incident->told = r->tick;
    return incident->packets;
}

/* In a flood of many sources the event budget is soon gone. Until the next tick fills it, nobody looks at the incident
 * table, which is a cache miss for each source: such packets are missing from the incident's number of packets. */
static __always_inline int told_enough(const struct tg_meter *room, __u32 tick)
{
    return room && room->seen == tick && room->tokens < TOKEN;
}

/* Puts the event into this CPU's room and sends it. Where only the entry point can send (perf events want the context),
 * it finds r->told set. */
static __always_inline void tell(struct reflex *r, const struct tg_knobs *k, __u32 reason, __u32 flags, __u64 until_ns)
{
    const struct packet *p = &r->packet;

    if (told_enough(cpu_meter(0), r->tick)) {
        tally(TG_EVENTS_SUPPRESSED);
        return;
    }
    __u32 packets = incident_news(r, k, reason);
    struct tg_event *event = event_room();

    /* a ban is news by itself, even where the same source was banned before */
    if (!event || (!packets && !(flags & TG_EVENT_BANNED)) ||
        !meter_spend(cpu_meter(0), 1, k, TG_OF_EVENTS, r->tick)) {
        tally(TG_EVENTS_SUPPRESSED);
        return;
    }
    event->at_ns = r->now_ns;
    event->until_ns = until_ns;
    __builtin_memcpy(event->source, &p->source, 16);
    __builtin_memcpy(event->dest, &p->dest, 16);
    event->source_port = p->source_port;
    event->dest_port = p->dest_port;
    event->proto = p->proto;
    event->family = p->family;
    event->reason = reason;
    event->flags = flags;
    event->packets = packets ? packets : 1;
    event->detail = r->detail;
    r->told = 1;
    tally(send_event(event) ? TG_EVENTS_LOST : TG_EVENTS_SENT);
}

#endif
