/* Payload samples: the first bytes that each side of a flow says, inside a budget, for signature inspection. */
#ifndef TG_SAMPLE_H
#define TG_SAMPLE_H

#include "flows.h"

/* How many payload bytes of this packet go to inspection: 0 for none. */
STEP __u32 sample_bytes(struct reflex *r)
{
    struct tg_knobs *k = knobs_page();

    if (!r || !k)
        return 0;
    const struct packet *p = &r->packet;
    struct tg_flow *flow = flow_record(r->flow_slot);
    __u32 length = p->frame_bytes - p->payload_offset;
    if (!flow || !p->payload || p->frame_bytes <= p->payload_offset ||
        flow->side[r->flow_side & 1].sampled_bytes >= k->sample_bytes)
        return 0;
    if (!meter_spend(cpu_meter(1), 1, k, TG_OF_SAMPLES, r->tick)) {
        tally(TG_SAMPLES_OVER);
        return 0;
    }
    if (length > p->payload)
        length = p->payload;
    return length < TG_SAMPLE_MAX ? length : TG_SAMPLE_MAX;
}

/* Sends the sample room, in which the payload already lies behind the header. */
STEP int finish_sample(struct reflex *r, __u32 length)
{
    struct tg_sample *s = sample_room();

    if (!r || !s || length < 1 || length > TG_SAMPLE_MAX)
        return 0;
    const struct packet *p = &r->packet;
    struct tg_flow *flow = flow_record(r->flow_slot);
    if (!flow)
        return 0;
    struct tg_flow_side *side = &flow->side[r->flow_side & 1];
    s->at_ns = flow->last_ns;
    s->key = flow->key;
    s->slot = r->flow_slot;
    s->incarnation = flow->incarnation;
    s->seq = p->seq;
    s->ack = p->ack;
    s->offset = side->payload_bytes - p->payload;
    s->payload = p->payload < 0xffff ? p->payload : 0xffff;
    s->captured = length;
    s->side = r->flow_side;
    s->tcp_flags = p->tcp_flags;
    s->ttl = p->ttl;
    __u32 size = sizeof(*s) + length;
    asm volatile("" : "+r"(size)); /* the compiler would prove the next line true and take the bound from the verifier */
    if (size > sizeof(*s) + TG_SAMPLE_MAX)
        return 0;
    if (send_sample(s, size)) {
        tally(TG_SAMPLES_LOST);
        return 0;
    }
    side->sampled_bytes += length;
    tally(TG_SAMPLES_SENT);
    return 1;
}

#endif
