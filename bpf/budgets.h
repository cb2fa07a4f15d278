/* Reflex budgets: token buckets per source, per prefix and per destination, in tables of fixed size.
 *
 * The source table is set-associative with an exact tag. A newcomer takes an empty way, else the oldest way that has
 * seen one packet only, else the oldest of all if that has been silent for a while: a flood of spoofed addresses
 * therefore cannot wash out sources that have spoken twice. Where all four ways are in use, one newcomer in 32 gets
 * in all the same, which a heavy source soon is and a spoofed one hardly ever. Two CPUs that meet on one source may
 * let a few packets too many through; nothing is ever locked.
 */
#ifndef TG_BUDGETS_H
#define TG_BUDGETS_H

#include "reflex.h"

#define TOKEN 1000                /* one packet, in milli-tokens */
#define ELAPSED_MAX (1 << 20)     /* ticks; 18 minutes fill every bucket, and the product stays within 64 bits */
#define KEEP_TICKS 9537           /* 10 s: a source that spoke twice keeps its state so long in silence */
#define METER_KEEP_TICKS 954      /* 1 s */
#define NO_BUDGET TG_SOURCE_BUDGETS

_Static_assert(TG_SOURCE_WAYS == 4 && TG_FLOW_WAYS == 4, "a way fits the two bits of its rank");

/* A chance of 1 in 32 that a flood cannot time: it depends on the secret hash and on the clock. */
static __always_inline int lucky(__u64 hash, __u32 tick)
{
    return (((__u32)(hash >> 40) ^ tick) & 31) == 0;
}

/* A staleness with its way; of equals, the lower way is the larger. */
#define WAY_BITS 2
static __always_inline __u64 ranked(__u32 staleness, __u32 way)
{
    return (__u64)staleness << WAY_BITS | (TG_SOURCE_WAYS - 1 - way);
}

static __always_inline int way_of(__u64 rank)
{
    return TG_SOURCE_WAYS - 1 - (rank & (TG_SOURCE_WAYS - 1));
}

/* Without a branch: which of the ways is oldest is nothing that a processor could guess. Both below 2^63. */
static __always_inline __u64 larger(__u64 a, __u64 b)
{
    __s64 less = a - b;

    asm volatile("" : "+r"(less)); /* the compiler would make a branch of it */
    return a - (less & (less >> 63));
}

static __always_inline __u32 refilled(__u32 tokens, __u32 elapsed, const struct tg_budget *budget, __u32 halve)
{
    __u64 burst = budget->burst >> halve;
    __u64 have;

    if (elapsed > ELAPSED_MAX)
        elapsed = ELAPSED_MAX;
    have = tokens + ((elapsed * (budget->refill >> halve)) >> 16);
    return have < burst ? have : burst;
}

static __always_inline __u64 source_tag(const struct packet *p)
{
    __u64 tag = (__u64)p->source.word[1] << 32 | p->source.word[0];

    if (p->family == 4)
        return 0xffff00000000ULL | p->source.word[3];
    return tag ? tag : 1;
}

static __always_inline __u64 source_hash(const struct packet *p, __u64 seed)
{
    return mix64(source_tag(p) ^ seed);
}

/* Higher gives way first: empty, then one-packet sources by age, then the others by age. */
static __always_inline __u32 source_staleness(const struct tg_source_set *set, __u32 way, __u32 tick)
{
    __u32 seen = set->seen[way], age = ((tick << 1) - (seen & ~1U)) >> 1;

    return set->tag[way] ? (age & 0x3fffffff) | (~seen & 1) << 30 : ~0U;
}

/* The way of a newcomer in its set, or -1 when there is no room. */
static __always_inline int take_way(const struct reflex *r, struct tg_source_set *set, __u64 hash)
{
    __u64 first = 0;

#pragma unroll
    for (int i = 0; i < TG_SOURCE_WAYS; i++)
        first = larger(first, ranked(source_staleness(set, i, r->tick), i));
    __u32 stalest = first >> WAY_BITS;
    if (stalest < KEEP_TICKS && !lucky(hash, r->tick)) {
        tally(TG_SOURCES_REFUSED);
        return -1;
    }
    if (stalest < 1 << 30)
        tally(TG_SOURCES_EVICTED);
    return way_of(first);
}

/* The way of the packet's source in its set, with its total refilled to now, or -1 when the set has no room. */
static __always_inline int source_way(struct reflex *r, const struct tg_knobs *k, struct tg_source_set *set)
{
    const struct tg_budget *total = &k->budget[TG_OF_TOTAL];
    __u64 tag = source_tag(&r->packet);
    int way = -1;

#pragma unroll
    for (int i = TG_SOURCE_WAYS - 1; i >= 0; i--)
        if (set->tag[i] == tag)
            way = i;
    if (way >= 0) {
        __u32 *seen = &set->seen[way & (TG_SOURCE_WAYS - 1)], *left = &set->total[way & (TG_SOURCE_WAYS - 1)];
        __u32 elapsed = ((r->tick << 1) - (*seen & ~1U)) >> 1;
        if (elapsed)
            *left = refilled(*left, elapsed, total, hardened(k));
        *seen = r->tick << 1 | 1;
        r->known_source = 1;
        return way;
    }
    way = take_way(r, set, r->source_hash);
    if (way >= 0) {
        set->tag[way & (TG_SOURCE_WAYS - 1)] = tag;
        set->seen[way & (TG_SOURCE_WAYS - 1)] = r->tick << 1;
        set->total[way & (TG_SOURCE_WAYS - 1)] = total->burst >> hardened(k);
    }
    return way;
}

/* Spends a token of one kind of packet. What another source left in the place is forgotten. */
static __always_inline int spend_kind(const struct reflex *r, const struct tg_knobs *k, __u32 way, __u32 which)
{
    __u32 owner = (__u32)(r->source_hash >> 32) | 1;

    if (which >= TG_OF_TOTAL || !k->budget[which].refill)
        return 1;
    struct tg_source_kinds *kinds = source_kinds(r->source_hash, way);
    if (!kinds)
        return 1;
    __u32 elapsed = kinds->owner == owner ? r->tick - kinds->seen : ELAPSED_MAX;
    if (elapsed) {
#pragma unroll
        for (int i = 0; i < TG_OF_TOTAL; i++)
            kinds->tokens[i] = kinds->owner == owner
                                   ? refilled(kinds->tokens[i], elapsed, &k->budget[i], hardened(k))
                                   : k->budget[i].burst >> hardened(k);
        kinds->owner = owner;
        kinds->seen = r->tick;
    }
    if (kinds->tokens[which] < TOKEN)
        return 0;
    kinds->tokens[which] -= TOKEN;
    return 1;
}

static __always_inline int spend_total(const struct tg_knobs *k, struct tg_source_set *set, __u32 way)
{
    __u32 *left = &set->total[way & (TG_SOURCE_WAYS - 1)];

    if (!k->budget[TG_OF_TOTAL].refill)
        return 1;
    if (*left < TOKEN)
        return 0;
    *left -= TOKEN;
    return 1;
}

/* Spends one token of a meter that many may share by hash. Returns 0 when there is none left. */
static __always_inline int meter_spend(struct tg_meter *meter, __u64 tag, const struct tg_knobs *k, __u32 which,
                                       __u32 tick)
{
    const struct tg_budget *budget = &k->budget[which];

    if (!meter)
        return 1;
    if (meter->tag != tag) {
        if (meter->tag && tick - meter->seen < METER_KEEP_TICKS && !lucky(tag, tick))
            return 1;
        meter->tag = tag;
        meter->tokens = budget->burst >> hardened(k);
        meter->packets = 0;
        meter->over = 0;
    } else {
        meter->tokens = refilled(meter->tokens, tick - meter->seen, budget, hardened(k));
    }
    meter->seen = tick;
    meter->packets++;
    if (meter->tokens < TOKEN) {
        meter->over++;
        return 0;
    }
    meter->tokens -= TOKEN;
    return 1;
}

static __always_inline int shared_spend(const struct reflex *r, const struct tg_knobs *k, __u32 which, __u64 subject)
{
    __u64 tag = mix64(subject ^ k->seed ^ which) | 1;

    return !k->budget[which].refill || meter_spend(meter_at(tag >> 1), tag, k, which, r->tick);
}

static __always_inline __u32 budget_of(const struct packet *p)
{
    if (p->fragment)
        return TG_OF_FRAGMENT;
    if (p->unparsed != TG_CLEAN)
        return NO_BUDGET;
    if (p->proto == PROTO_TCP)
        return (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN ? TG_OF_SYN : NO_BUDGET;
    return p->proto == PROTO_UDP ? TG_OF_UDP : TG_OF_ICMP;
}

/* UDP services that answer a short question from a forged address with much: chargen, qotd, DNS, TFTP, portmap, NTP,
 * NetBIOS, SNMP, CLDAP, SLP, RIP, L2TP, SSDP, Apple remote desktop, WS-Discovery, CoAP, mDNS, memcached, Ubiquiti. */
static __always_inline int amplifies(__u16 port)
{
    return port == 17 || port == 19 || port == 53 || port == 69 || port == 111 || port == 123 || port == 137 ||
           port == 161 || port == 389 || port == 427 || port == 520 || port == 1701 || port == 1900 || port == 3283 ||
           port == 3702 || port == 5353 || port == 5683 || port == 10001 || port == 11211;
}

static __always_inline __u32 over_shared_budget(const struct reflex *r, const struct tg_knobs *k, __u32 which)
{
    const struct packet *p = &r->packet;
    __u64 prefix = p->family == 4 ? (__u64)(p->source.word[3] & bpf_htonl(0xffffff00)) << 32 | 4
                                  : ((__u64)p->source.word[1] << 32 | p->source.word[0]) & 0xffffffffffffULL;

    if (which != NO_BUDGET && !shared_spend(r, k, TG_OF_PREFIX, prefix))
        return TG_BUDGET_PREFIX;
    if (p->proto == PROTO_UDP && !p->fragment && p->payload >= k->amplified_bytes &&
        amplifies(p->source_port) && !shared_spend(r, k, TG_OF_AMPLIFIED, address_hash(&p->dest, 0)))
        return TG_AMPLIFICATION;
    if (which == TG_OF_SYN && !shared_spend(r, k, TG_OF_SYN_DEST, address_hash(&p->dest, p->dest_port + 1))) {
        tally(TG_SYN_OVER);
        return TG_SYN_FLOOD;
    }
    return 0;
}

/* Returns the reason why this packet is too much, or 0. TG_SYN_FLOOD is the destination's trouble, not the source's. */
static __always_inline __u32 over_budget(struct reflex *r)
{
    struct tg_knobs *k = knobs_page();

    if (!r || !k)
        return 0;
    __u32 which = budget_of(&r->packet);
    if (!r->source_hash)
        r->source_hash = source_hash(&r->packet, k->seed);
    struct tg_source_set *set = source_set(r->source_hash);
    if (!set)
        return 0;
    int way = source_way(r, k, set);
    if (way >= 0) {
        if (!spend_kind(r, k, way, which))
            return which == TG_OF_SYN    ? TG_BUDGET_SYN
                   : which == TG_OF_UDP  ? TG_BUDGET_UDP
                   : which == TG_OF_ICMP ? TG_BUDGET_ICMP
                                         : TG_BUDGET_FRAGMENT;
        if (!spend_total(k, set, way))
            return TG_BUDGET_TOTAL;
    }
    return over_shared_budget(r, k, which);
}

#endif
