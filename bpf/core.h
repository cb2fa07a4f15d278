/* The order of work for one packet. Verdict and reason travel together; each frame is counted once, under one reason.
 *
 * Time comes in as an argument. Nothing is looked up for clean traffic that only a drop would need: the allowlist is
 * asked after a reason to drop has been found, and ban tables only where a prefilter says that something is there.
 */
#ifndef TG_CORE_H
#define TG_CORE_H

#include "events.h"
#include "malformed.h"
#include "sample.h"
#include "vaccine.h"

/* What the next steps will look at, for a packet that is on no list: each lies on a page of its own. */
static __always_inline void ask_ahead(struct reflex *r, const struct tg_knobs *k)
{
    r->source_hash = source_hash(&r->packet, k->seed);
    touch(source_set(r->source_hash));
    r->flow_hash = flow_hash(&r->packet, k->seed);
    touch(flow_set(r->flow_hash & flow_set_mask()));
}

/* What speaks against the packet by its content and its source, whatever the rates are. Changes no verdict. */
static __always_inline __u32 objection(struct reflex *r)
{
    struct tg_knobs *k = knobs_page();
    __u32 reason;

    if (!r || !k)
        return 0;
    if (k->drop_malformed && (reason = malformed(&r->packet)))
        return reason;
    if ((r->detail = blocklist_class(&r->packet)))
        return TG_BLOCKLIST;
    if (!r->proving)
        ask_ahead(r, k);
    if ((reason = banned(r, k)))
        return reason;
    return vaccinated(r);
}

/* Nothing follows: no ban comes of this reason, and the events of this tick are told. Spares a flood the call. */
static __always_inline int is_hushed(const struct reflex *r, __u32 reason)
{
    return reason < TG_BAN && told_enough(cpu_meter(0), r->tick);
}

/* Bans and events that follow from a reason to drop. A ban needs a posture that enforces. */
STEP int react(struct reflex *r, __u32 reason)
{
    struct tg_knobs *k = knobs_page();

    if (!r || !k || reason == TG_BAN || reason == TG_BAN_PREFIX)
        return 0; /* of a ban, its making was told */
    __u32 observing = k->posture == TG_OBSERVE;
    __u32 flags = observing ? TG_EVENT_OBSERVED : 0;
    __u64 until_ns = 0;
    if (reason >= TG_BUDGET_SYN && reason <= TG_BUDGET_TOTAL && k->ban_ns && !observing) {
        until_ns = r->now_ns + k->ban_ns;
        flags |= ban_source(r, k, reason, until_ns);
    }
    tell(r, k, reason, flags, until_ns);
    return 1;
}

/* Returns the one reason under which the packet is counted. */
static __always_inline __u32 judge(struct reflex *r, const struct tg_knobs *k)
{
    const struct packet *p = &r->packet;
    __u32 reason;

    if (!p->family)
        return p->unparsed;
    if (is_neighbour_discovery(p))
        return TG_NEIGHBOUR;
    reason = objection(r);
    if (!reason && !r->proving)
        reason = over_budget(r);
    if (!reason)
        return p->unparsed;
    if (tolerated(r))
        return TG_TOLERATED;
    if (r->proving)
        return reason;
    if (is_hushed(r, reason))
        tally(TG_EVENTS_SUPPRESSED);
    else
        react(r, reason);
    if (reason == TG_SYN_FLOOD && k->syn_flood_answer != TG_SYN_DROP) {
        r->syn_flood = k->syn_flood_answer == TG_SYN_COOKIE && k->posture != TG_OBSERVE;
        return p->unparsed; /* told and counted; the source is most likely forged */
    }
    return reason;
}

static __always_inline void count(const struct reflex *r, __u32 reason, int observed)
{
    struct tg_stats *stats = stats_row();

    if (!stats)
        return;
    struct tg_counter *counter = observed ? &stats->would[reason & (TG_REASONS - 1)] : &stats->did[reason & (TG_REASONS - 1)];
    counter->packets++;
    counter->bytes += r->packet.wire_bytes;
}

#define TG_OBSERVED_BIT 0x100 /* on a reason: the verdict was withheld */

/* Judges a parsed packet at the time r->now_ns, counts it and accounts its flow. Returns its reason. */
static __always_inline __u32 reflex_arc(struct reflex *r, const struct tg_knobs *k)
{
    __u32 reason = judge(r, k);
    int observed = k->posture == TG_OBSERVE && (reason >= TG_DROP_FIRST || reason == TG_TOLERATED);

    r->flow_slot = SLOT_NONE;
    if (!r->proving) {
        count(r, reason, observed);
        if (r->packet.family && !r->packet.malformed && (reason < TG_DROP_FIRST || observed))
            account(r);
    }
    return observed ? reason | TG_OBSERVED_BIT : reason;
}

static __always_inline int is_drop(__u32 result)
{
    return result >= TG_DROP_FIRST && !(result & TG_OBSERVED_BIT);
}

#endif
