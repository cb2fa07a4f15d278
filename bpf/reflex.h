/* What every step of the reflex arc works on, and the accessors through which it reaches the maps.
 *
 * The steps (malformed.h, bans.h, vaccine.h, budgets.h, flows.h, sample.h, events.h) know no map: each program file
 * defines these accessors, so the same steps compile for libbpf and for BCC, for XDP and for traffic control.
 */
#ifndef TG_REFLEX_H
#define TG_REFLEX_H

#include "parse.h"

/* A step that the verifier checks once, by itself, instead of again after each way of getting there. It gets plain
 * memory only (no pointers inside), must allow for NULL, and returns a number. */
#ifndef STEP
#define STEP __attribute__((noinline))
#endif

/* One packet on its way through the steps. */
struct reflex {
    struct packet packet;
    __u64 now_ns;              /* coarse: a few milliseconds behind */
    __u64 fingerprint;         /* of the payload, where a vaccine might want it; else 0 */
    __u64 source_hash;         /* of its tables; 0 while nobody has asked */
    __u64 flow_hash;
    __u32 tick;                /* now_ns >> 20 */
    __u32 proving;             /* a synthetic packet that asks for a verdict: nothing may change because of it */
    __u32 known_source;        /* the source has spoken before this packet */
    __u32 leaving;             /* sent by this node: accounted, never judged */
    __u32 detail;              /* for the event */
    __u32 flow_way;            /* of its set that is this conversation's, or shall be */
    __u32 flow_is_new;         /* it shall be: nothing of this conversation is there yet */
    __u32 flow_slot;           /* of its flow record, SLOT_NONE without one */
    __u32 flow_side;
    __u32 told;                /* an event lies in this CPU's event room */
    __u32 syn_flood;           /* a SYN beyond its destination's rate that was not dropped */
};

#define SLOT_NONE 0xffffffff

static __always_inline struct tg_knobs *knobs_page(void);
static __always_inline struct tg_stats *stats_row(void);

static __always_inline struct tg_page *ban_filter_page(__u32 filter, __u32 page);
static __always_inline struct tg_page *prefix_filter_page(__u32 page);
static __always_inline struct tg_page *vaccine_filter_page(__u32 page);
static __always_inline struct tg_ban *ban_find(const struct tg_ban_key *key);
static __always_inline long ban_store(const struct tg_ban_key *key, const struct tg_ban *ban);
static __always_inline struct tg_ban *prefix_ban_find(const struct tg_prefix *key);
static __always_inline void *tolerance_find(const struct tg_prefix *key);
static __always_inline struct tg_vaccine *vaccine_find(const struct tg_vaccine_key *key);
static __always_inline __u32 blocklist_class(const struct packet *p);
static __always_inline struct tg_source_set *source_set(__u32 hash);
static __always_inline struct tg_source_kinds *source_kinds(__u32 hash, __u32 way);
static __always_inline struct tg_meter *meter_at(__u32 hash);
static __always_inline struct tg_meter *cpu_meter(__u32 which);
static __always_inline struct tg_incident *incident_at(__u32 hash);
static __always_inline struct tg_flow_set *flow_set(__u32 set);
static __always_inline struct tg_flow *flow_record(__u32 slot);
static __always_inline __u32 flow_set_mask(void);
static __always_inline __u64 exact_now_ns(const struct reflex *r);
static __always_inline struct tg_event *event_room(void);
static __always_inline long send_event(struct tg_event *event);
static __always_inline struct tg_sample *sample_room(void);
static __always_inline long send_sample(struct tg_sample *sample, __u32 length);

static __always_inline void tally(__u32 which)
{
    struct tg_stats *stats = stats_row();

    if (stats)
        stats->tally[which]++;
}

/* Asks for a cache line without waiting for it: loads whose addresses are known at once then overlap. */
static __always_inline void touch(const void *line)
{
    if (line)
        (void)*(const volatile __u8 *)line;
}

/* Finalizer with full avalanche; the constants are those of MurmurHash3. bpf/maps.py has the same in numpy. */
static __always_inline __u64 mix64(__u64 x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ULL;
    return x ^ (x >> 33);
}

/* The secret salt is both added and multiplied in, so nobody outside can find two addresses that collide. */
static __always_inline __u64 address_hash(const struct address *a, __u64 salt)
{
    __u64 high = (__u64)a->word[1] << 32 | a->word[0];
    __u64 low = (__u64)a->word[3] << 32 | a->word[2];

    return mix64((low ^ salt) + high * (salt | 1));
}

static __always_inline __u32 hardened(const struct tg_knobs *k)
{
    return k->posture == TG_HARDENED;
}

#endif
