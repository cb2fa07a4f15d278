/* Dynamic bans with their prefilter and expiry, prefix bans, and the tolerance that stands above them.
 *
 * A ban is stored first and its filter bytes are set afterwards, in both filters. Whoever rebuilds a filter clears it
 * first and reads the bans afterwards; so every ban is in the filter that is read, at every moment.
 */
#ifndef TG_BANS_H
#define TG_BANS_H

#include "reflex.h"

#define PAGE_MASK (TG_PAGE - 1)
#define PAGE_SHIFT 12

static __always_inline __u32 ban_slot(const struct tg_ban_key *key, __u64 seed)
{
    return address_hash((const struct address *)key->addr, seed + key->bits) & (TG_FILTER_SLOTS - 1);
}

static __always_inline int is_over(__u64 until_ns, __u64 now_ns)
{
    return until_ns && until_ns <= now_ns;
}

static __always_inline struct tg_ban *standing_ban(const struct reflex *r, const struct tg_knobs *k, const struct tg_ban_key *key)
{
    __u32 slot = ban_slot(key, k->seed);
    struct tg_page *filter = ban_filter_page(k->ban_filter & 1, slot >> PAGE_SHIFT);

    if (!filter || !filter->byte[slot & PAGE_MASK])
        return 0;
    struct tg_ban *ban = ban_find(key);
    return ban && !is_over(ban->until_ns, r->now_ns) ? ban : 0;
}

/* The key of the address itself, or of the /64 around it. */
static __always_inline void ban_key_of(struct tg_ban_key *key, const struct address *a, __u32 bits)
{
    __builtin_memcpy(key->addr, a, 16);
    if (bits == 64)
        __builtin_memset(key->addr + 8, 0, 8);
    key->bits = bits;
}

static __always_inline struct tg_ban *prefix_ban(const struct reflex *r)
{
    const struct address *a = &r->packet.source;
    __u32 slot;

    if (r->packet.family == 4)
        slot = bpf_ntohl(a->word[3]) >> 16;
    else
        slot = TG_PREFIX_SLOTS + (mix64(a->word[0]) & (TG_PREFIX_SLOTS - 1));
    struct tg_page *filter = prefix_filter_page(slot >> PAGE_SHIFT);
    if (!filter || !filter->byte[slot & PAGE_MASK])
        return 0;
    struct tg_prefix key = { .bits = 128 };
    __builtin_memcpy(key.addr, a, 16);
    struct tg_ban *ban = prefix_ban_find(&key);
    return ban && !is_over(ban->until_ns, r->now_ns) ? ban : 0;
}

/* Returns the reason to drop, or 0. Racing CPUs may lose a count of `packets`; the verdict's own counter is exact. */
static __always_inline __u32 banned(const struct reflex *r, const struct tg_knobs *k)
{
    struct tg_ban_key key;
    struct tg_ban *ban;
    __u32 reason = TG_BAN;

    ban_key_of(&key, &r->packet.source, 128);
    ban = standing_ban(r, k, &key);
    if (!ban && r->packet.family == 6) {
        ban_key_of(&key, &r->packet.source, 64);
        ban = standing_ban(r, k, &key);
    }
    if (!ban && k->prefix_bans) {
        reason = TG_BAN_PREFIX;
        ban = prefix_ban(r);
    }
    if (!ban)
        return 0;
    if (!r->proving)
        ban->packets++;
    return reason;
}

static __always_inline int tolerated(const struct reflex *r)
{
    struct tg_prefix key = { .bits = 128 };

    __builtin_memcpy(key.addr, &r->packet.source, 16);
    return tolerance_find(&key) != 0;
}

/* The program bans the packet's source by itself: IPv4 by address, IPv6 by /64. Returns flags for the event. */
static __always_inline __u32 ban_source(const struct reflex *r, const struct tg_knobs *k, __u32 reason, __u64 until_ns)
{
    struct tg_ban_key key;
    struct tg_ban ban = { .until_ns = until_ns, .reason = reason, .made_by = TG_BY_KERNEL };

    ban_key_of(&key, &r->packet.source, r->packet.family == 6 ? 64 : 128);
    if (ban_store(&key, &ban)) {
        tally(TG_BANS_FULL);
        return TG_EVENT_FULL;
    }
    __u32 slot = ban_slot(&key, k->seed);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        struct tg_page *filter = ban_filter_page(i, slot >> PAGE_SHIFT);
        if (filter)
            filter->byte[slot & PAGE_MASK] = 1;
    }
    tally(TG_BANS_MADE);
    return TG_EVENT_BANNED;
}

#endif
