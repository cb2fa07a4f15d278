/* Flow accounting: one record per conversation, both directions, with the sums that sessions and models need.
 *
 * Set-associative like the source table, with its index apart from the records. A conversation whose source has never
 * spoken before takes only an empty, finished or idle record, so that a flood of spoofed first packets, once it has
 * filled what was free, writes nothing more and evicts nothing. Others may evict one-packet records, and live ones
 * only after five seconds of silence or, one in 32, by luck.
 *
 * What leaves the node fills the other side of a record (bpf/egress.h). It begins one only where it can be no answer,
 * and an answer leaves the record of a source that has spoken once as replaceable as it was: otherwise the stack's own
 * answers to a flood would make forged conversations look more alive than real ones.
 *
 * A key that returns after `flow_idle_ticks` of silence is another conversation and gets another incarnation; of a TCP
 * connection that was only silent, it is remembered who began it and that it stood.
 *
 * A side of a record belongs to one CPU at a time in practice (receive-side scaling keeps a flow on one queue); two
 * CPUs on one side may lose a count, and two on both sides a state, which the next packet sets right.
 */
#ifndef TG_FLOWS_H
#define TG_FLOWS_H

#include "budgets.h"

#define AGE_MASK 0x3fffffff
#define AGE_MAX (1 << 24)         /* five hours, then all are equally old */
#define STALE_YOUNG (1 << 25)
#define STALE_DONE (1 << 26)
#define STALE_IDLE (1 << 27)
#define FLOW_KEEP_TICKS 4768      /* 5 s */
#define DONE_TICKS 1907           /* 2 s: what came after FIN or RST still belongs to the flow, and readers see it */
#define IAT_MAX_US (1ULL << 31)

/* A conversation has one hash in both directions. */
static __always_inline __u64 flow_hash(const struct packet *p, __u64 seed)
{
    __u64 from = address_hash(&p->source, seed + p->source_port);
    __u64 to = address_hash(&p->dest, seed + p->dest_port);

    return mix64(from + to + p->proto);
}

/* Higher gives way first. */
static __always_inline __u32 flow_staleness(const struct tg_flow_tag *tag, __u32 tick, __u32 idle_ticks)
{
    __u32 age = (tick - (tag->seen >> 2)) & AGE_MASK;
    __u32 stale = age < AGE_MAX ? age : AGE_MAX;

    if (!tag->hash)
        return ~0U;
    if (tag->seen & TG_FLOW_YOUNG)
        stale |= STALE_YOUNG;
    if ((tag->seen & TG_FLOW_DONE) && age >= DONE_TICKS)
        stale |= STALE_DONE;
    return age >= idle_ticks ? stale | STALE_IDLE : stale;
}

static __always_inline int may_take(const struct reflex *r, __u32 staleness, __u64 hash)
{
    if (staleness >= STALE_DONE)
        return 1;
    return r->known_source && (staleness >= STALE_YOUNG || staleness >= FLOW_KEEP_TICKS || lucky(hash, r->tick));
}

/* 0: sent by the initiator, 1: by the responder, -1: another conversation. */
static __always_inline int side_of(const struct tg_flow_key *key, const struct packet *p)
{
    const struct address *a = (const struct address *)key->addr[0], *b = (const struct address *)key->addr[1];

    if (key->proto != p->proto)
        return -1;
    if (key->port[0] == p->source_port && key->port[1] == p->dest_port && a->word[3] == p->source.word[3] &&
        b->word[3] == p->dest.word[3] && a->word[2] == p->source.word[2] && b->word[2] == p->dest.word[2] &&
        a->word[1] == p->source.word[1] && b->word[1] == p->dest.word[1] && a->word[0] == p->source.word[0] &&
        b->word[0] == p->dest.word[0])
        return 0;
    if (key->port[1] == p->source_port && key->port[0] == p->dest_port && b->word[3] == p->source.word[3] &&
        a->word[3] == p->dest.word[3] && b->word[2] == p->source.word[2] && a->word[2] == p->dest.word[2] &&
        b->word[1] == p->source.word[1] && a->word[1] == p->dest.word[1] && b->word[0] == p->source.word[0] &&
        a->word[0] == p->dest.word[0])
        return 1;
    return -1;
}

/* Who is the initiator, by the packet that begins a record. Returns the side that sent it: SYN+ACK comes from the
 * responder. */
static __always_inline int name_parties(struct tg_flow_key *key, const struct packet *p)
{
    int side = p->proto == PROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);

    if (side) {
        __builtin_memcpy(key->addr[1], &p->source, 16);
        __builtin_memcpy(key->addr[0], &p->dest, 16);
        key->port[1] = p->source_port;
        key->port[0] = p->dest_port;
    } else {
        __builtin_memcpy(key->addr[0], &p->source, 16);
        __builtin_memcpy(key->addr[1], &p->dest, 16);
        key->port[0] = p->source_port;
        key->port[1] = p->dest_port;
    }
    key->proto = p->proto;
    key->family = p->family;
    return side;
}

/* Makes the record this packet's. resumed: the side that sent it, of a connection that was silent for long and goes on
 * between the same parties; -1 for a conversation that begins. Returns the side. */
static __always_inline int open_flow(struct tg_flow *flow, const struct packet *p, int resumed)
{
    struct tg_flow_key parties = flow->key;
    __u32 incarnation = flow->incarnation;
    __u8 stood = flow->state == TG_FLOW_ESTABLISHED;
    int side = resumed;

    __builtin_memset(flow, 0, sizeof(*flow));
    flow->incarnation = incarnation + 1;
    if (resumed < 0) {
        side = name_parties(&flow->key, p);
    } else {
        flow->key = parties;
        flow->state = stood ? TG_FLOW_ESTABLISHED : TG_FLOW_NEW;
    }
    flow->vlan = p->vlan;
    flow->icmp_type = p->icmp_type;
    flow->icmp_code = p->icmp_code;
    tally(TG_FLOWS_MADE);
    return side;
}

static __always_inline void next_state(struct tg_flow *flow, const struct packet *p, int side)
{
    __u8 flags = p->tcp_flags;

    if (flags & TCP_RST)
        flow->state = flow->state == TG_FLOW_HALF_OPEN ? TG_FLOW_REFUSED : TG_FLOW_CLOSED;
    else if ((flags & TCP_SYN) && flow->state == TG_FLOW_NEW)
        flow->state = TG_FLOW_HALF_OPEN;
    else if (!(flags & TCP_SYN) && (flags & TCP_ACK) && flow->state == TG_FLOW_HALF_OPEN &&
             (side == 0 || !flow->said[0]))
        flow->state = TG_FLOW_ESTABLISHED; /* where only the responder is seen, its data says the same */
    if (flags & TCP_FIN)
        flow->said[side & 1] |= TG_SAID_FIN;
    if (flow->said[0] != TG_SAID && flow->said[1] != TG_SAID)
        flow->state = TG_FLOW_CLOSED; /* whoever has spoken has said that it is done */
}

/* segments: packets that offload has joined; of the flags, ACK, URG and ECE are repeated in each of them. */
static __always_inline void count_tcp(struct tg_flow_side *side, const struct packet *p, __u32 segments)
{
    __u8 flags = p->tcp_flags, six = flags & 0x3f;

#pragma unroll
    for (int i = 0; i < 8; i++)
        if (flags >> i & 1)
            side->flags[i] += i >= 4 && i <= 6 ? segments : 1;
    side->flags_seen |= flags;
    if (!six || six == TCP_FIN || six == 0x3f || (six & (TCP_SYN | TCP_FIN)) == (TCP_SYN | TCP_FIN) ||
        (six & (TCP_SYN | TCP_RST)) == (TCP_SYN | TCP_RST) || six == (TCP_FIN | TCP_PSH | TCP_URG))
        side->illegal_flags += side->illegal_flags != 0xffff;
    if (flags & TCP_SYN) {
        if (side->flags[1] > 1 && side->syn_seq == p->seq)
            side->syn_retries += side->syn_retries != 0xffff;
        side->syn_seq = p->seq;
        if (!side->mss)
            side->mss = p->mss;
    }
}

static __always_inline __u32 size_bin(__u32 n)
{
    return ((n > 0) + (n > 64) + (n > 256) + (n > 512) + (n > 1024) + (n > 1400)) & 7;
}

/* One packet; or the packets on the wire that offload has joined into one frame: all but the last have `segment_bytes`
 * of payload, each has the headers, and no time passes between them. */
static __always_inline void count_side(struct tg_flow_side *side, const struct packet *p, __u64 now_ns)
{
    __u32 last = p->payload, each = p->segment_bytes, more = 0;

    if (each && last > each && p->unparsed == TG_CLEAN) {
        more = (last - 1) / each;
        last -= more * each;
    }
    __u16 smallest = last < 0xffff ? last : 0xffff, largest = more ? each : smallest;

    if (!side->packets) {
        side->first_ns = now_ns;
        side->payload_min = 0xffff;
        side->ttl = p->ttl;
        side->window = p->window;
    } else if (now_ns > side->last_ns) {
        __u64 iat_ns = now_ns - side->last_ns, iat_us = iat_ns / 1000;
        if (iat_us > IAT_MAX_US)
            iat_us = IAT_MAX_US;
        side->iat_sum_ns += iat_ns;
        side->iat_sumsq_us += iat_us * iat_us;
        if (side->iat_sumsq_us < iat_us * iat_us)
            side->iat_sumsq_us = ~0ULL; /* it stays at the largest number rather than begin again */
        if (iat_us > side->iat_max_us)
            side->iat_max_us = iat_us;
    }
    side->last_ns = now_ns;
    side->packets += more + 1;
    side->wire_bytes += p->wire_bytes + (__u64)more * p->payload_offset;
    side->payload_bytes += p->payload;
    side->payload_sumsq += (__u64)last * last + (__u64)more * each * each;
    if (smallest < side->payload_min)
        side->payload_min = smallest;
    if (largest > side->payload_max)
        side->payload_max = largest;
    side->sizes[size_bin(last)]++;
    if (more)
        side->sizes[size_bin(each)] += more;
    side->fragments += p->fragment != NOT_FRAGMENT;
    if (p->proto == PROTO_TCP && p->unparsed == TG_CLEAN)
        count_tcp(side, p, more + 1);
}

/* What leaves the node begins a record only where it can be no answer: with a SYN, an echo request, or a datagram that
 * finds no record of its question. Resets, SYN+ACKs, ICMP errors and later fragments follow somebody else's word. */
static __always_inline int may_begin(const struct packet *p)
{
    if (p->proto == PROTO_TCP)
        return (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
    if (p->proto == PROTO_ICMP || p->proto == PROTO_ICMP6)
        return p->icmp_type == (p->proto == PROTO_ICMP ? 8 : 128);
    return p->unparsed == TG_CLEAN || p->unparsed == TG_OTHER_PROTOCOL;
}

/* Whose record is it, or whose shall it be? Returns the way in the set, or -1. */
static __always_inline int choose_way(const struct reflex *r, const struct tg_knobs *k, struct tg_flow_set *set,
                                     __u64 hash, __u32 *is_new)
{
    __u32 mark = (__u32)(hash >> 32) | 1;
    __u64 first = 0;

    *is_new = 0;
#pragma unroll
    for (int i = 0; i < TG_FLOW_WAYS; i++)
        if (set->tag[i].hash == mark)
            return i;
    if (r->leaving && !may_begin(&r->packet))
        return -1;
#pragma unroll
    for (int i = 0; i < TG_FLOW_WAYS; i++)
        first = larger(first, ranked(flow_staleness(&set->tag[i], r->tick, k->flow_idle_ticks), i));
    __u32 stalest = first >> WAY_BITS;
    if (!may_take(r, stalest, hash)) {
        tally(TG_FLOWS_REFUSED);
        return -1;
    }
    if (stalest < STALE_DONE)
        tally(TG_FLOWS_EVICTED);
    *is_new = 1;
    return way_of(first);
}

/* Writes the packet into the record at r->flow_way, and leaves in r where that is: flow_slot and flow_side. */
STEP int write_down(struct reflex *r)
{
    struct tg_knobs *k = knobs_page();

    if (!r || !k)
        return 0;
    const struct packet *p = &r->packet;
    __u64 hash = r->flow_hash;
    __u32 index = hash & flow_set_mask(), way = r->flow_way & (TG_FLOW_WAYS - 1), is_new = r->flow_is_new;
    __u32 slot = way * (flow_set_mask() + 1) + index;
    struct tg_flow_set *set = flow_set(index);
    struct tg_flow *flow = flow_record(slot);
    if (!set || !flow)
        return 0;
    struct tg_flow_tag *tag = &set->tag[way];
    int side = is_new ? -1 : side_of(&flow->key, p);
    if (!is_new && side < 0)
        return 0; /* same mark, other conversation: one in 2^31 */
    if (!is_new) {
        touch(&flow->side[side & 1].last_ns);
        touch(flow->side[side & 1].sizes);
    }
    __u64 now_ns = exact_now_ns(r); /* reading the clock waits for all that was asked of memory before */
    if (!is_new && now_ns > flow->last_ns && now_ns - flow->last_ns >= (__u64)k->flow_idle_ticks << 20) {
        is_new = 1;
        if (p->proto != PROTO_TCP || (p->tcp_flags & TCP_SYN))
            side = -1;
    } else if ((tag->seen & TG_FLOW_DONE) && p->proto == PROTO_TCP &&
               (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN) {
        is_new = 1; /* the same ports are used again */
        side = -1;
    }
    if (is_new)
        side = open_flow(flow, p, side);
    flow->last_ns = now_ns;
    flow->said[side & 1] |= TG_SAID;
    count_side(&flow->side[side & 1], p, now_ns);
    if (p->proto == PROTO_TCP && p->unparsed == TG_CLEAN)
        next_state(flow, p, side);
    __u32 seen = r->tick << 2 | (is_new ? TG_FLOW_YOUNG : 0);
    if (r->leaving && side == 1 && !is_new && (tag->seen & TG_FLOW_YOUNG))
        seen = tag->seen; /* an answer: whoever asked has still spoken only once */
    tag->hash = (__u32)(hash >> 32) | 1;
    tag->seen = seen | (flow->state == TG_FLOW_CLOSED || flow->state == TG_FLOW_REFUSED ? TG_FLOW_DONE : 0);
    r->flow_slot = slot;
    r->flow_side = side & 1;
    return 1;
}

/* Accounts a packet that passes, if there is a record for it. */
static __always_inline int account(struct reflex *r)
{
    struct tg_knobs *k = knobs_page();

    if (!k)
        return 0;
    if (!r->flow_hash)
        r->flow_hash = flow_hash(&r->packet, k->seed);
    struct tg_flow_set *set = flow_set(r->flow_hash & flow_set_mask());
    if (!set)
        return 0;
    int way = choose_way(r, k, set, r->flow_hash, &r->flow_is_new);
    if (way < 0)
        return 0;
    r->flow_way = way;
    return write_down(r);
}

#endif
