/* Reflex arc for BCC — the same core, with BCC's tables behind its accessors.
 *
 * Compiled from source on the node by bpf/bcc_loader.py, which gives every size (TG_SIZE_...) and every constant (tg_...)
 * on the command line. BCC cannot link programs, so every step is inlined into each of them. What a packet is on its way
 * lies in a map, not on the stack: the verifier then keeps nothing in mind about it, and the whole fits its limit. The
 * tables, the reasons and the counters are those of reflex_arc.bpf.c.
 */
#define STEP static inline __attribute__((always_inline))

#include <linux/in6.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>

#include "blocklist.h"
#include "core.h"
#include "egress.h"
#include "syn_cookie.h"

#define TCX_NEXT (-1) /* let the next program or the stack have it; also TC_ACT_UNSPEC */
#define TC_SHOT 2
#define LOOPBACK 1    /* interface the kernel gives to BPF_PROG_TEST_RUN; the program is never hung on it */

enum { EVENTS_BY_RING = 0, EVENTS_BY_PERF = 1, EVENTS_BY_NONE = 2 };

/* --- maps ------------------------------------------------------------------------------------------------------ */

struct sample_room {
    struct tg_sample header;
    __u8 payload[TG_SAMPLE_MAX];
};

BPF_F_TABLE("array", u32, struct tg_knobs, knobs, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct tg_stats, stats, TG_SIZE_STATS, BPF_F_MMAPABLE);
BPF_F_TABLE("hash", struct tg_ban_key, struct tg_ban, bans, TG_SIZE_BANS, 0);
BPF_F_TABLE("array", u32, struct tg_page, ban_filters, 2 * TG_FILTER_SLOTS / TG_PAGE, BPF_F_MMAPABLE);
BPF_F_TABLE("lpm_trie", struct tg_prefix, struct tg_ban, prefix_bans, 4096, BPF_F_NO_PREALLOC);
BPF_F_TABLE("array", u32, struct tg_page, prefix_filter, 2 * TG_PREFIX_SLOTS / TG_PAGE, BPF_F_MMAPABLE);
BPF_F_TABLE("lpm_trie", struct tg_prefix, u64, tolerance, 4096, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", struct tg_vaccine_key, struct tg_vaccine, vaccines, 4096, BPF_F_NO_PREALLOC);
BPF_F_TABLE("array", u32, struct tg_page, vaccine_filter, 65536 / TG_PAGE, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct tg_source_set, sources, TG_SIZE_SOURCES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct tg_source_kinds, source_rows, TG_SIZE_SOURCE_ROWS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct tg_meter, meters, TG_SIZE_METERS, BPF_F_MMAPABLE);
BPF_F_TABLE("percpu_array", u32, struct tg_meter, cpu_meters, 2, 0);
BPF_F_TABLE("array", u32, struct tg_incident, incidents, TG_SIZE_INCIDENTS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct tg_flow_set, flow_index, TG_SIZE_FLOW_INDEX, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct tg_flow, flows, TG_SIZE_FLOWS, BPF_F_MMAPABLE);
BPF_F_TABLE("hash", u32, u32, carriers, 256, BPF_F_NO_PREALLOC);
BPF_F_TABLE("percpu_array", u32, struct sample_room, sample_rooms, 1, 0);
BPF_F_TABLE("percpu_array", u32, struct tg_event, event_rooms, 1, 0);

/* One for each kind of program, and one for proofs, which a real packet may interrupt. */
enum { ROOM_XDP = 0, ROOM_TC, ROOM_PROOF, ROOM_EGRESS, ROOMS };
BPF_F_TABLE("percpu_array", u32, struct reflex, reflex_rooms, ROOMS, 0);

/* The shapes only show BCC what an image is; Python makes the images. */
BPF_F_TABLE("array", u32, struct tg_page, snapshot_shape, TG_SNAPSHOT_PAGES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct tg_page, snapshot6_shape, TG_SNAPSHOT6_PAGES, BPF_F_MMAPABLE);
BPF_ARRAY_OF_MAPS(snapshot, "snapshot_shape", 1);
BPF_ARRAY_OF_MAPS(snapshot6, "snapshot6_shape", 1);

#if tg_event_path == 0
BPF_RINGBUF_OUTPUT(events, TG_SIZE_EVENTS / PAGE_SIZE);
#elif tg_event_path == 1
BPF_PERF_OUTPUT(events_perf);
#endif
#if tg_sampling
BPF_RINGBUF_OUTPUT(samples, TG_SIZE_SAMPLES / PAGE_SIZE);
#endif

/* Enumerations that no map names, kept in the type information for Python. */
struct {
    enum tg_reason reason;
    enum tg_tally tally;
    enum tg_budget_name budget;
    enum tg_flow_state state;
    enum tg_posture posture;
} *tg_types_for_python __attribute__((used));

/* --- accessors ------------------------------------------------------------------------------------------------- */

/* BCC rewrites `table.lookup(&key)` where it is spelled out, but not inside macros. */
static __always_inline struct tg_page *ban_filter_page(__u32 filter, __u32 page)
{
    u32 key = filter * (TG_FILTER_SLOTS / TG_PAGE) + page;
    return ban_filters.lookup(&key);
}

static __always_inline struct tg_source_set *source_set(__u32 hash)
{
    u32 key = hash & (TG_SIZE_SOURCES - 1);
    return sources.lookup(&key);
}

static __always_inline struct tg_source_kinds *source_kinds(__u32 hash, __u32 way)
{
    u32 key = way * TG_SIZE_SOURCES + (hash & (TG_SIZE_SOURCES - 1));
    return source_rows.lookup(&key);
}

static __always_inline struct tg_meter *meter_at(__u32 hash)
{
    u32 key = hash & (TG_SIZE_METERS - 1);
    return meters.lookup(&key);
}

static __always_inline struct tg_incident *incident_at(__u32 hash)
{
    u32 key = hash & (TG_SIZE_INCIDENTS - 1);
    return incidents.lookup(&key);
}

static __always_inline struct tg_sample *sample_room(void)
{
    u32 key = 0;
    return (struct tg_sample *)sample_rooms.lookup(&key);
}

static __always_inline struct tg_event *event_room(void)
{
    u32 key = 0;
    return event_rooms.lookup(&key);
}

static __always_inline struct tg_knobs *knobs_page(void)
{
    u32 key = 0;
    return knobs.lookup(&key);
}

static __always_inline struct tg_stats *stats_row(void)
{
    u32 key = bpf_get_smp_processor_id();
    return stats.lookup(&key);
}

static __always_inline struct tg_page *prefix_filter_page(__u32 page) { return prefix_filter.lookup(&page); }
static __always_inline struct tg_page *vaccine_filter_page(__u32 page) { return vaccine_filter.lookup(&page); }
static __always_inline struct tg_meter *cpu_meter(__u32 which) { return cpu_meters.lookup(&which); }
static __always_inline struct tg_flow_set *flow_set(__u32 set) { return flow_index.lookup(&set); }
static __always_inline int carries(__u32 ifindex) { return !!carriers.lookup(&ifindex); }
static __always_inline struct tg_flow *flow_record(__u32 slot) { return flows.lookup(&slot); }
static __always_inline __u32 flow_set_mask(void) { return TG_SIZE_FLOW_INDEX - 1; }

static __always_inline struct tg_ban *ban_find(const struct tg_ban_key *key)
{
    return bans.lookup((struct tg_ban_key *)key);
}

static __always_inline long ban_store(const struct tg_ban_key *key, const struct tg_ban *ban)
{
    return bans.update((struct tg_ban_key *)key, (struct tg_ban *)ban);
}

static __always_inline struct tg_ban *prefix_ban_find(const struct tg_prefix *key)
{
    return prefix_bans.lookup((struct tg_prefix *)key);
}

static __always_inline void *tolerance_find(const struct tg_prefix *key)
{
    return tolerance.lookup((struct tg_prefix *)key);
}

static __always_inline struct tg_vaccine *vaccine_find(const struct tg_vaccine_key *key)
{
    return vaccines.lookup((struct tg_vaccine_key *)key);
}

static __always_inline __u32 blocklist_class(const struct packet *p)
{
    void *image;
    int key = 0;

    if (p->family == 4) {
        image = snapshot.lookup(&key);
        return image ? blocklist4(image, bpf_ntohl(p->source.word[3])) : 0;
    }
    image = snapshot6.lookup(&key);
    return image ? blocklist6(image, (const struct in6_addr *)&p->source) : 0;
}

static __always_inline __u64 exact_now_ns(const struct reflex *r) { return tg_replay ? r->now_ns : bpf_ktime_get_ns(); }

static __always_inline long send_event(struct tg_event *event)
{
#if tg_event_path == 0
    return events.ringbuf_output(event, sizeof(*event), 0);
#else
    return tg_event_path == EVENTS_BY_PERF ? 0 : -1;
#endif
}

static __always_inline long send_sample(struct tg_sample *sample, __u32 length)
{
#if tg_sampling
    return samples.ringbuf_output(sample, length, 0);
#else
    return -1;
#endif
}

/* --- entry points ---------------------------------------------------------------------------------------------- */

/* Jiffies cost nothing to read and keep step with CLOCK_MONOTONIC; the service measures the distance once. */
static __always_inline void tell_time(struct reflex *r, const struct tg_knobs *k)
{
    r->now_ns = tg_replay ? k->replay_now_ns : bpf_jiffies64() * k->clock_tick_ns + k->clock_offset_ns;
    r->tick = r->now_ns >> 20;
}

#define PARSE(context, p)                                                                                             \
    do {                                                                                                              \
        struct frame _f = { .data = (void *)(long)(context)->data, .end = (void *)(long)(context)->data_end };        \
        if (!parse_network(&_f, p))                                                                                   \
            break;                                                                                                    \
        if ((p)->family == 6 && is_extension((p)->proto) && !parse_extensions(&_f, p))                                \
            break;                                                                                                    \
        parse_transport(&_f, p);                                                                                      \
    } while (0)

/* The compiler must not prove a bound that the verifier has to see. */
#define OPAQUE(number) asm volatile("" : "+r"(number))

/* The payload's fingerprint, where a vaccine might want it. A macro, as the helper differs between the two contexts. */
#define TAKE_FINGERPRINT(r, k, context, load_bytes)                                                                   \
    do {                                                                                                              \
        __u64 _length = tg_sampling ? fingerprint_bytes(&(r)->packet, k) : 0;                                         \
        OPAQUE(_length);                                                                                              \
        if (_length >= 1 && _length <= TG_FINGERPRINT_BYTES) {                                                        \
            __u8 _head[TG_FINGERPRINT_BYTES] = {};                                                                    \
            if (!load_bytes(context, (r)->packet.payload_offset, _head, _length))                                     \
                (r)->fingerprint = fingerprint(_head, _length);                                                       \
        }                                                                                                             \
    } while (0)

/* The payload's first bytes, for inspection. */
#define TAKE_SAMPLE(r, context, load_bytes)                                                                           \
    do {                                                                                                              \
        struct sample_room *_room = (struct sample_room *)sample_room();                                              \
        __u64 _length = tg_sampling && (r)->flow_slot != SLOT_NONE ? sample_bytes(r) : 0;                             \
        OPAQUE(_length);                                                                                              \
        if (_room && _length >= 1 && _length <= TG_SAMPLE_MAX &&                                                      \
            !load_bytes(context, (r)->packet.payload_offset, _room->payload, _length))                                \
            finish_sample(r, _length);                                                                                \
    } while (0)

/* A proof, or a test, wants the reason too: it is written over the first two bytes of the frame. */
static __always_inline void answer(struct xdp_md *ctx, __u32 result)
{
    __u16 *first = (void *)(long)ctx->data;

    if ((void *)(first + 1) <= (void *)(long)ctx->data_end)
        *first = result;
}

int tegumentar_xdp(struct xdp_md *ctx)
{
    u32 proving = tg_live && ctx->ingress_ifindex == LOOPBACK, which = proving ? ROOM_PROOF : ROOM_XDP;
    struct reflex *r = reflex_rooms.lookup(&which);
    struct tg_knobs *k = knobs_page();
    __u32 result;

    if (!r || !k)
        return XDP_PASS;
    __builtin_memset(r, 0, sizeof(*r));
    r->proving = proving;
    r->packet.wire_bytes = r->packet.frame_bytes = ctx->data_end - ctx->data;
    if (tg_replay && k->replay_wire_bytes)
        r->packet.wire_bytes = k->replay_wire_bytes;
    tell_time(r, k);
    PARSE(ctx, &r->packet);
    TAKE_FINGERPRINT(r, k, ctx, bpf_xdp_load_bytes);
    result = reflex_arc(r, k);
    TAKE_SAMPLE(r, ctx, bpf_xdp_load_bytes);
#if tg_event_path == 1
    struct tg_event *event = event_room();
    if (r->told && event && events_perf.perf_submit(ctx, event, sizeof(*event)))
        tally(TG_EVENTS_LOST);
#endif
    if (!tg_live || r->proving)
        answer(ctx, result);
#if tg_cookies
    if (r->syn_flood && tg_live && answer_syn(ctx, &r->packet)) {
        tally(TG_SYN_COOKIES);
        return XDP_TX;
    }
#endif
    return is_drop(result) ? XDP_DROP : XDP_PASS;
}

/* Headers beyond the linear part of a buffer are pulled in first: options and extension headers may need as much. */
#define HEADER_ROOM 256

/* What the buffer knows beside its bytes. */
static __always_inline void describe(const struct __sk_buff *skb, struct packet *p)
{
    p->wire_bytes = p->frame_bytes = skb->len;
    p->segment_bytes = skb->gso_size;
    if (skb->vlan_present)
        p->vlan = skb->vlan_tci & 0x0fff;
}

int tegumentar_tc(struct __sk_buff *skb)
{
    u32 proving = tg_live && skb->ifindex == LOOPBACK, which = proving ? ROOM_PROOF : ROOM_TC;
    struct reflex *r = reflex_rooms.lookup(&which);
    struct tg_knobs *k = knobs_page();
    __u32 result;

    if (!r || !k)
        return TCX_NEXT;
    if (skb->data_end - skb->data < HEADER_ROOM && skb->data_end - skb->data < skb->len)
        bpf_skb_pull_data(skb, skb->len < HEADER_ROOM ? skb->len : HEADER_ROOM);
    __builtin_memset(r, 0, sizeof(*r));
    r->proving = proving;
    describe(skb, &r->packet);
    if (tg_replay && k->replay_wire_bytes)
        r->packet.wire_bytes = k->replay_wire_bytes;
    tell_time(r, k);
    PARSE(skb, &r->packet);
    TAKE_FINGERPRINT(r, k, skb, bpf_skb_load_bytes);
    result = reflex_arc(r, k);
    TAKE_SAMPLE(r, skb, bpf_skb_load_bytes);
#if tg_event_path == 1
    struct tg_event *event = event_room();
    if (r->told && event && events_perf.perf_submit(skb, event, sizeof(*event)))
        tally(TG_EVENTS_LOST);
#endif
    if (!tg_live || r->proving)
        skb->mark = result;
    return is_drop(result) ? TC_SHOT : TCX_NEXT;
}

/* On the way out, pulling headers would copy what the stack still shares: only where the first reading fell short. */
int tegumentar_egress(struct __sk_buff *skb)
{
    u32 which = ROOM_EGRESS;
    struct reflex *r = reflex_rooms.lookup(&which);
    struct tg_knobs *k = knobs_page();

    if (!r || !k || (tg_live && skb->ifindex == LOOPBACK) || was_accounted(skb))
        return TCX_NEXT;
    __builtin_memset(r, 0, sizeof(*r));
    describe(skb, &r->packet);
    PARSE(skb, &r->packet);
    if (is_cut_short(&r->packet) && skb->data_end - skb->data < skb->len &&
        !bpf_skb_pull_data(skb, skb->len < HEADER_ROOM ? skb->len : HEADER_ROOM)) {
        __builtin_memset(r, 0, sizeof(*r));
        describe(skb, &r->packet);
        PARSE(skb, &r->packet);
    }
    tell_time(r, k);
    account_leaving(r);
    return TCX_NEXT;
}

/* Reads both clocks for the service: jiffies and CLOCK_MONOTONIC, into the first 16 bytes of a test frame. */
int tegumentar_clock(struct xdp_md *ctx)
{
    __u64 *out = (void *)(long)ctx->data;

    if ((void *)(out + 2) > (void *)(long)ctx->data_end)
        return XDP_ABORTED;
    out[0] = bpf_jiffies64();
    out[1] = bpf_ktime_get_ns();
    return XDP_PASS;
}
