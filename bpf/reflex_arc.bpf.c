/* Reflex arc — the XDP (and traffic-control) program: maps, accessors, entry points.
 *
 * Compiled ahead with clang (python -m bpf.build) and loaded through libbpf (bpf/loader.py). It reads packets and its
 * own maps only, so it needs no kernel headers and no relocation against the running kernel.
 */
#include <linux/bpf.h>
#include <linux/in6.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "blocklist.h"
#include "core.h"
#include "egress.h"
#include "syn_cookie.h"

char LICENSE[] SEC("license") = "GPL";

#define TCX_NEXT (-1) /* let the next program or the stack have it; also TC_ACT_UNSPEC */
#define TC_SHOT 2
#define LOOPBACK 1    /* interface the kernel gives to BPF_PROG_TEST_RUN; the program is never hung on it */

/* --- fixed at load time; dead branches are removed by the verifier --------------------------------------------- */

enum { EVENTS_BY_RING = 0, EVENTS_BY_PERF = 1, EVENTS_BY_NONE = 2 };

const volatile __u32 tg_live = 1;           /* 1: a frame from loopback is a proof and changes nothing */
const volatile __u32 tg_replay = 0;         /* 1: time comes from the knobs */
const volatile __u32 tg_event_path = EVENTS_BY_RING;
const volatile __u32 tg_sampling = 1;       /* 0: no payload is read (kernels before 5.18 lack the helper) */
const volatile __u32 tg_cookies = 1;        /* 0: SYNs are never answered here (kernels before 5.18 lack the helpers) */
const volatile __u32 tg_source_mask = 65535;
const volatile __u32 tg_meter_mask = 65535;
const volatile __u32 tg_incident_mask = 16383;
const volatile __u32 tg_flow_mask = 16383;

/* --- maps ------------------------------------------------------------------------------------------------------ */

#define TABLE(map_type, map_name, key_type, value_type, size, flags) \
    struct {                                                         \
        __uint(type, map_type);                                      \
        __type(key, key_type);                                       \
        __type(value, value_type);                                   \
        __uint(max_entries, size);                                   \
        __uint(map_flags, flags);                                    \
    } map_name SEC(".maps")

TABLE(BPF_MAP_TYPE_ARRAY, knobs, __u32, struct tg_knobs, 1, BPF_F_MMAPABLE);
TABLE(BPF_MAP_TYPE_ARRAY, stats, __u32, struct tg_stats, 1, BPF_F_MMAPABLE); /* sized to the CPUs at load */
TABLE(BPF_MAP_TYPE_HASH, bans, struct tg_ban_key, struct tg_ban, 131072, 0);
TABLE(BPF_MAP_TYPE_ARRAY, ban_filters, __u32, struct tg_page, 2 * TG_FILTER_SLOTS / TG_PAGE, BPF_F_MMAPABLE);
TABLE(BPF_MAP_TYPE_LPM_TRIE, prefix_bans, struct tg_prefix, struct tg_ban, 4096, BPF_F_NO_PREALLOC);
TABLE(BPF_MAP_TYPE_ARRAY, prefix_filter, __u32, struct tg_page, 2 * TG_PREFIX_SLOTS / TG_PAGE, BPF_F_MMAPABLE);
TABLE(BPF_MAP_TYPE_LPM_TRIE, tolerance, struct tg_prefix, __u64, 4096, BPF_F_NO_PREALLOC);
TABLE(BPF_MAP_TYPE_HASH, vaccines, struct tg_vaccine_key, struct tg_vaccine, 4096, BPF_F_NO_PREALLOC);
TABLE(BPF_MAP_TYPE_ARRAY, vaccine_filter, __u32, struct tg_page, 65536 / TG_PAGE, BPF_F_MMAPABLE);
TABLE(BPF_MAP_TYPE_ARRAY, sources, __u32, struct tg_source_set, 65536, BPF_F_MMAPABLE);
TABLE(BPF_MAP_TYPE_ARRAY, source_rows, __u32, struct tg_source_kinds, 65536 * TG_SOURCE_WAYS, BPF_F_MMAPABLE);
TABLE(BPF_MAP_TYPE_ARRAY, meters, __u32, struct tg_meter, 65536, BPF_F_MMAPABLE);
TABLE(BPF_MAP_TYPE_PERCPU_ARRAY, cpu_meters, __u32, struct tg_meter, 2, 0);
TABLE(BPF_MAP_TYPE_ARRAY, incidents, __u32, struct tg_incident, 16384, BPF_F_MMAPABLE);
TABLE(BPF_MAP_TYPE_ARRAY, flow_index, __u32, struct tg_flow_set, 16384, BPF_F_MMAPABLE);
TABLE(BPF_MAP_TYPE_ARRAY, flows, __u32, struct tg_flow, 16384 * TG_FLOW_WAYS, BPF_F_MMAPABLE);
TABLE(BPF_MAP_TYPE_HASH, carriers, __u32, __u32, 256, BPF_F_NO_PREALLOC); /* interfaces that carry this program */

struct sample_room {
    struct tg_sample header;
    __u8 payload[TG_SAMPLE_MAX];
};
TABLE(BPF_MAP_TYPE_PERCPU_ARRAY, sample_rooms, __u32, struct sample_room, 1, 0);

/* What a packet is on its way lies in a map, not on the stack: the verifier then keeps nothing in mind about it, and the
 * steps that every packet takes fit into the entry point itself. A call costs as much as a cache miss, because returns
 * are guarded against speculation. One room for each kind of program, and one for proofs, which a real packet may
 * interrupt; 256 bytes, so that its shape stays. */
enum { ROOM_XDP = 0, ROOM_TC, ROOM_PROOF, ROOMS };
union reflex_room {
    struct reflex r;
    __u8 bytes[256];
};
TG_ASSERT_SIZE(union reflex_room, 256);
TABLE(BPF_MAP_TYPE_PERCPU_ARRAY, reflex_rooms, __u32, union reflex_room, ROOMS, 0);
TABLE(BPF_MAP_TYPE_PERCPU_ARRAY, event_rooms, __u32, struct tg_event, 1, 0);

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 1 << 20);
} events SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 1 << 22);
} samples SEC(".maps");

/* key and value sizes must be given: without them the kernel answers EINVAL, which looks like a platform's refusal */
struct {
    __uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
    __uint(key_size, sizeof(__u32));
    __uint(value_size, sizeof(__u32));
} events_perf SEC(".maps");

#define SNAPSHOT(map_name, pages)                      \
    struct {                                           \
        __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);      \
        __uint(key_size, sizeof(__u32));               \
        __uint(value_size, sizeof(__u32));             \
        __uint(max_entries, 1);                        \
        __array(values, struct {                       \
            __uint(type, BPF_MAP_TYPE_ARRAY);          \
            __uint(key_size, sizeof(__u32));           \
            __uint(value_size, TG_PAGE);               \
            __uint(max_entries, pages);                \
            __uint(map_flags, BPF_F_MMAPABLE);         \
        });                                            \
    } map_name SEC(".maps")

SNAPSHOT(snapshot, TG_SNAPSHOT_PAGES);
SNAPSHOT(snapshot6, TG_SNAPSHOT6_PAGES);

/* Structures and enumerations that no map names, kept in the type information for bpf/abi.py. */
struct {
    enum tg_reason reason;
    enum tg_tally tally;
    enum tg_budget_name budget;
    enum tg_flow_state state;
    enum tg_posture posture;
} *tg_types_for_python __attribute__((unused));

/* --- accessors ------------------------------------------------------------------------------------------------- */

#define FIND(map, key_expression) ({ __u32 _key = (key_expression); bpf_map_lookup_elem(&map, &_key); })

static __always_inline struct tg_page *ban_filter_page(__u32 filter, __u32 page)
{
    return FIND(ban_filters, filter * (TG_FILTER_SLOTS / TG_PAGE) + page);
}

static __always_inline struct tg_page *prefix_filter_page(__u32 page) { return FIND(prefix_filter, page); }
static __always_inline struct tg_page *vaccine_filter_page(__u32 page) { return FIND(vaccine_filter, page); }
static __always_inline struct tg_source_set *source_set(__u32 hash) { return FIND(sources, hash & tg_source_mask); }
static __always_inline struct tg_source_kinds *source_kinds(__u32 hash, __u32 way)
{
    return FIND(source_rows, way * (tg_source_mask + 1) + (hash & tg_source_mask));
}

static __always_inline struct tg_meter *meter_at(__u32 hash) { return FIND(meters, hash & tg_meter_mask); }
static __always_inline struct tg_meter *cpu_meter(__u32 which) { return FIND(cpu_meters, which); }
static __always_inline struct tg_incident *incident_at(__u32 hash) { return FIND(incidents, hash & tg_incident_mask); }
static __always_inline struct tg_flow_set *flow_set(__u32 set) { return FIND(flow_index, set); }
static __always_inline struct tg_flow *flow_record(__u32 slot) { return FIND(flows, slot); }
static __always_inline __u32 flow_set_mask(void) { return tg_flow_mask; }
static __always_inline struct tg_sample *sample_room(void) { return FIND(sample_rooms, 0); }
static __always_inline struct tg_event *event_room(void) { return FIND(event_rooms, 0); }
static __always_inline struct reflex *reflex_room(__u32 which) { return (struct reflex *)FIND(reflex_rooms, which); }
static __always_inline struct tg_knobs *knobs_page(void) { return FIND(knobs, 0); }
static __always_inline struct tg_stats *stats_row(void) { return FIND(stats, bpf_get_smp_processor_id()); }

static __always_inline int carries(__u32 ifindex) { return !!FIND(carriers, ifindex); }

static __always_inline struct tg_ban *ban_find(const struct tg_ban_key *key)
{
    return bpf_map_lookup_elem(&bans, key);
}

static __always_inline long ban_store(const struct tg_ban_key *key, const struct tg_ban *ban)
{
    return bpf_map_update_elem(&bans, key, ban, BPF_ANY);
}

static __always_inline struct tg_ban *prefix_ban_find(const struct tg_prefix *key)
{
    return bpf_map_lookup_elem(&prefix_bans, key);
}

static __always_inline void *tolerance_find(const struct tg_prefix *key)
{
    return bpf_map_lookup_elem(&tolerance, key);
}

static __always_inline struct tg_vaccine *vaccine_find(const struct tg_vaccine_key *key)
{
    return bpf_map_lookup_elem(&vaccines, key);
}

static __always_inline __u32 blocklist_class(const struct packet *p)
{
    void *image;

    if (p->family == 4) {
        image = FIND(snapshot, 0);
        return image ? blocklist4(image, bpf_ntohl(p->source.word[3])) : 0;
    }
    image = FIND(snapshot6, 0);
    return image ? blocklist6(image, (const struct in6_addr *)&p->source) : 0;
}

static __always_inline __u64 exact_now_ns(const struct reflex *r)
{
    return tg_replay ? r->now_ns : bpf_ktime_get_ns();
}

/* Perf events need the context, which only the entry point has: it sends what lies in the event room. */
static __always_inline long send_event(struct tg_event *event)
{
    if (tg_event_path == EVENTS_BY_RING)
        return bpf_ringbuf_output(&events, event, sizeof(*event), 0);
    return tg_event_path == EVENTS_BY_PERF ? 0 : -1;
}

static __always_inline long send_sample(struct tg_sample *sample, __u32 length)
{
    return bpf_ringbuf_output(&samples, sample, length, 0);
}

/* --- entry points ---------------------------------------------------------------------------------------------- */

/* Jiffies cost nothing to read and keep step with CLOCK_MONOTONIC; the service measures the distance once. */
static __always_inline __u64 coarse_now_ns(const struct tg_knobs *k)
{
    return tg_replay ? k->replay_now_ns : bpf_jiffies64() * k->clock_tick_ns + k->clock_offset_ns;
}

/* The parser's steps for one kind of context; those of XDP lie in its entry point, but for the long one. */
#define PARSER(how, name, step, context_type)                                                             \
    how int name(struct context_type *ctx, struct packet *p)                                             \
    {                                                                                                     \
        struct frame f = { .data = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end };         \
        return p ? step(&f, p) : 0;                                                                       \
    }

PARSER(static __always_inline, parse_network_xdp, parse_network, xdp_md)
PARSER(STEP, parse_extensions_xdp, parse_extensions, xdp_md)
PARSER(static __always_inline, parse_transport_xdp, parse_transport, xdp_md)
PARSER(STEP, parse_network_tc, parse_network, __sk_buff)
PARSER(STEP, parse_extensions_tc, parse_extensions, __sk_buff)
PARSER(STEP, parse_transport_tc, parse_transport, __sk_buff)

#define PARSE(context, p, kind)                                                                           \
    do {                                                                                                  \
        if (!parse_network_##kind(context, p))                                                            \
            break;                                                                                        \
        if ((p)->family == 6 && is_extension((p)->proto) && !parse_extensions_##kind(context, p))         \
            break;                                                                                        \
        parse_transport_##kind(context, p);                                                               \
    } while (0)

/* The whole work on one frame. A macro, because the helper that copies payload differs between the two contexts. */
#define JUDGE(r, context, kind, load_bytes)                                                               \
    ({                                                                                                    \
        struct tg_knobs *_k = knobs_page();                                                               \
        __u32 _result = TG_CLEAN, _length;                                                                \
        if (_k) {                                                                                         \
            if (tg_replay && _k->replay_wire_bytes)                                                       \
                (r)->packet.wire_bytes = _k->replay_wire_bytes;                                           \
            (r)->now_ns = coarse_now_ns(_k);                                                              \
            (r)->tick = (r)->now_ns >> 20;                                                                \
            PARSE(context, &(r)->packet, kind);                                                           \
            _length = tg_sampling ? fingerprint_bytes(&(r)->packet, _k) : 0;                              \
            if (_length >= 1 && _length <= TG_FINGERPRINT_BYTES) {                                        \
                __u8 _head[TG_FINGERPRINT_BYTES] = {};                                                    \
                if (!load_bytes(context, (r)->packet.payload_offset, _head, _length))                     \
                    (r)->fingerprint = fingerprint(_head, _length);                                       \
            }                                                                                             \
            _result = reflex_arc(r, _k);                                                                  \
            if (tg_sampling && (r)->flow_slot != SLOT_NONE && (r)->packet.payload) {                      \
                struct sample_room *_room = FIND(sample_rooms, 0);                                        \
                _length = sample_bytes(r);                                                                \
                if (_room && _length >= 1 && _length <= TG_SAMPLE_MAX &&                                  \
                    !load_bytes(context, (r)->packet.payload_offset, _room->payload, _length))            \
                    finish_sample(r, _length);                                                            \
            }                                                                                             \
            if (tg_event_path == EVENTS_BY_PERF && (r)->told) {                                           \
                struct tg_event *_event = event_room();                                                   \
                if (_event && bpf_perf_event_output(context, &events_perf, BPF_F_CURRENT_CPU, _event,     \
                                                    sizeof(*_event)))                                     \
                    tally(TG_EVENTS_LOST);                                                                \
            }                                                                                             \
        }                                                                                                 \
        _result;                                                                                          \
    })

/* A proof, or a test, wants the reason too: it is written over the first two bytes of the frame. */
static __always_inline void answer(void *data, void *data_end, __u32 result)
{
    __u16 *first = data;

    if (data + sizeof(*first) <= data_end)
        *first = result;
}

SEC("xdp")
int tegumentar_xdp(struct xdp_md *ctx)
{
    __u32 proving = tg_live && ctx->ingress_ifindex == LOOPBACK, result;
    struct reflex *r = reflex_room(proving ? ROOM_PROOF : ROOM_XDP);

    if (!r)
        return XDP_PASS;
    __builtin_memset(r, 0, sizeof(*r));
    r->proving = proving;
    r->packet.wire_bytes = r->packet.frame_bytes = ctx->data_end - ctx->data;
    result = JUDGE(r, ctx, xdp, bpf_xdp_load_bytes);
    if (!tg_live || r->proving)
        answer((void *)(long)ctx->data, (void *)(long)ctx->data_end, result);
    if (tg_cookies && r->syn_flood && tg_live && answer_syn(ctx, &r->packet)) {
        tally(TG_SYN_COOKIES);
        return XDP_TX;
    }
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

SEC("tc")
int tegumentar_tc(struct __sk_buff *skb)
{
    if (skb->data_end - skb->data < HEADER_ROOM && skb->data_end - skb->data < skb->len)
        bpf_skb_pull_data(skb, skb->len < HEADER_ROOM ? skb->len : HEADER_ROOM);
    __u32 proving = tg_live && skb->ifindex == LOOPBACK, result;
    struct reflex *r = reflex_room(proving ? ROOM_PROOF : ROOM_TC);

    if (!r)
        return TCX_NEXT;
    __builtin_memset(r, 0, sizeof(*r));
    r->proving = proving;
    describe(skb, &r->packet);
    result = JUDGE(r, skb, tc, bpf_skb_load_bytes);
    if (!tg_live || r->proving)
        skb->mark = result;
    return is_drop(result) ? TC_SHOT : TCX_NEXT;
}

/* On the way out, headers lie in the linear part but for rare ones, and pulling would copy what the stack still shares:
 * it is done only where the first reading fell short. */
SEC("tc")
int tegumentar_egress(struct __sk_buff *skb)
{
    struct reflex r = {};
    struct tg_knobs *k = knobs_page();

    if (!k || (tg_live && skb->ifindex == LOOPBACK) || was_accounted(skb))
        return TCX_NEXT;
    describe(skb, &r.packet);
    PARSE(skb, &r.packet, tc);
    if (is_cut_short(&r.packet) && skb->data_end - skb->data < skb->len &&
        !bpf_skb_pull_data(skb, skb->len < HEADER_ROOM ? skb->len : HEADER_ROOM)) {
        __builtin_memset(&r.packet, 0, sizeof(r.packet));
        describe(skb, &r.packet);
        PARSE(skb, &r.packet, tc);
    }
    r.now_ns = coarse_now_ns(k);
    r.tick = r.now_ns >> 20;
    account_leaving(&r);
    return TCX_NEXT;
}

/* Reads both clocks for the service: jiffies and CLOCK_MONOTONIC, into the first 16 bytes of a test frame. */
SEC("xdp")
int tegumentar_clock(struct xdp_md *ctx)
{
    __u64 *out = (void *)(long)ctx->data;

    if ((void *)(out + 2) > (void *)(long)ctx->data_end)
        return XDP_ABORTED;
    out[0] = bpf_jiffies64();
    out[1] = bpf_ktime_get_ns();
    return XDP_PASS;
}
