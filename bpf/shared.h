/* What the kernel program and Python both know: every structure that lies in a map, every reason, every knob.
 *
 * Python builds its numpy dtypes from the BTF of the compiled object (bpf/abi.py), so this file is the only place
 * where a layout is written down. Sizes are asserted here; a change of any structure in a pinned map changes the
 * schema hash, and with it the pin directory, so two versions never misread each other.
 *
 * Conventions: addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d. Ports and counts are in host order.
 * Times called *_ns are CLOCK_MONOTONIC nanoseconds (in a replay: the capture's own clock). A tick is 2^20 ns.
 */
#ifndef TG_SHARED_H
#define TG_SHARED_H

#define TG_ASSERT_SIZE(type, size) _Static_assert(sizeof(type) == (size), #type " has changed its size")

/* --- why a frame was passed or dropped ----------------------------------------------------------------------- */

/* Every frame ends with exactly one of these. Below TG_DROP_FIRST it passes, from there on it is dropped
 * (unless the posture only observes). The lower-case names without TG_ are what people see. */
enum tg_reason {
    TG_CLEAN = 0,             /* judged to the end, nothing to object */
    TG_TOLERATED,             /* would have been dropped, but the source is on the allowlist */
    TG_NOT_IP,                /* another protocol than IP */
    TG_ARP,                   /* never dropped: a node without ARP is off the net */
    TG_NEIGHBOUR,             /* IPv6 neighbour discovery, never dropped for the same reason */
    TG_UNPARSED_LINK,         /* the frame ends inside Ethernet or VLAN, or has more than two tags */
    TG_UNPARSED_IP,           /* the frame ends inside the IP header, or its version field is neither 4 nor 6 */
    TG_UNPARSED_EXTENSION,    /* IPv6 extension headers cut short, or more than six of them */
    TG_UNPARSED_TRANSPORT,    /* the frame ends inside the TCP, UDP or ICMP header */
    TG_OTHER_PROTOCOL,        /* clean, and neither TCP, UDP nor ICMP */
    TG_LATER_FRAGMENT,        /* clean, and a fragment without transport header */
    TG_PASS_END,

    TG_DROP_FIRST = 32,
    TG_LAND = 32,             /* source address and port equal the destination's */
    TG_TCP_NULL,              /* no TCP flag at all */
    TG_TCP_XMAS,              /* FIN, PSH and URG together */
    TG_TCP_SYN_FIN,           /* SYN with FIN or with RST */
    TG_BAD_LENGTH,            /* lengths that contradict each other */
    TG_BAD_FRAGMENT,          /* fragments that overlap the transport header or overrun 65535 bytes */
    TG_BLOCKLIST,             /* on a feed */
    TG_BAN,                   /* banned address, or IPv6 /64 */
    TG_BAN_PREFIX,            /* banned prefix */
    TG_VACCINE,               /* known hostile payload */
    TG_AMPLIFICATION,         /* large UDP answer from a port that amplifies, over its budget */
    TG_BUDGET_SYN,            /* source (IPv6: its /64) over its SYN budget */
    TG_BUDGET_UDP,
    TG_BUDGET_ICMP,
    TG_BUDGET_FRAGMENT,
    TG_BUDGET_TOTAL,
    TG_BUDGET_PREFIX,         /* neighbours together (IPv4 /24, IPv6 /48) over their budget */
    TG_SYN_FLOOD,             /* destination under a SYN flood from random sources */
    TG_DROP_END,
};

#define TG_REASONS 64

/* --- counters ------------------------------------------------------------------------------------------------- */

/* Things that are counted but are no verdict: one frame may raise none or several. */
enum tg_tally {
    TG_EVENTS_SENT = 0,
    TG_EVENTS_LOST,           /* the ring was full */
    TG_EVENTS_SUPPRESSED,     /* over the event budget, or the same incident again */
    TG_BANS_MADE,             /* by the program itself */
    TG_BANS_FULL,             /* not made, because the map was full */
    TG_SOURCES_EVICTED,       /* a source that had spoken more than once lost its state */
    TG_SOURCES_REFUSED,       /* no state for a newcomer: all ways of its set were in use */
    TG_FLOWS_MADE,
    TG_FLOWS_EVICTED,         /* a live flow record gave way to a newer one */
    TG_FLOWS_REFUSED,         /* no record for a first packet: all ways of its set were in use */
    TG_SAMPLES_SENT,
    TG_SAMPLES_LOST,          /* the ring was full */
    TG_SAMPLES_OVER,          /* over the sample budget */
    TG_SYN_OVER,              /* SYNs beyond a destination's rate */
    TG_SYN_COOKIES,           /* of which answered with a cookie by the program itself */
    TG_TALLY_END,
};

#define TG_TALLIES 64

struct tg_counter {
    __u64 packets;
    __u64 bytes;
};

/* One page per CPU, written by that CPU alone. Each frame raises exactly one slot of exactly one of the two tables. */
struct tg_stats {
    struct tg_counter did[TG_REASONS];    /* the verdict that was carried out */
    struct tg_counter would[TG_REASONS];  /* the verdict that was withheld, because the posture only observes */
    __u64 tally[TG_TALLIES];
    __u8 _rest[4096 - 2 * 16 * TG_REASONS - 8 * TG_TALLIES];
};
TG_ASSERT_SIZE(struct tg_stats, 4096);

/* --- bans and tolerance --------------------------------------------------------------------------------------- */

/* bits is 128 for an address (IPv4 too, as it is mapped) and 64 for an IPv6 /64, whose other bytes are then zero. */
struct tg_ban_key {
    __u8 addr[16];
    __u32 bits;
};
TG_ASSERT_SIZE(struct tg_ban_key, 20);

struct tg_ban {
    __u64 until_ns;           /* 0: until released. An expired entry no longer drops; the service sweeps it out. */
    __u64 packets;            /* dropped because of it; racing CPUs may lose a few */
    __u32 reason;             /* enum tg_reason that made it, or TG_BAN when the service did */
    __u32 made_by;            /* enum tg_origin */
};
TG_ASSERT_SIZE(struct tg_ban, 24);

enum tg_origin { TG_BY_KERNEL = 0, TG_BY_SERVICE = 1 };

/* In front of the ban table stand two filters of one byte per hash slot; 0 says "no ban here". The program sets bytes
 * in both and reads the one that the knob names; the service rebuilds the other and turns the knob. Bytes, not bits,
 * because storing a byte needs no read before it, so service and program cannot undo each other's work. */
#define TG_FILTER_SLOTS (1 << 19)

/* Longest-prefix key for tolerance and for prefix bans; bits counts from the mapped address: an IPv4 /24 has 120. */
struct tg_prefix {
    __u32 bits;
    __u8 addr[16];
};
TG_ASSERT_SIZE(struct tg_prefix, 20);

/* In front of the prefix bans: a byte per first 16 bits of an IPv4 address, then one per hash of the first 32 bits of
 * an IPv6 address. Only the service writes it. */
#define TG_PREFIX_SLOTS 65536

/* --- vaccines ------------------------------------------------------------------------------------------------- */

#define TG_FINGERPRINT_BYTES 32  /* of the payload; a shorter payload is padded with zeros and hashed with its length */

struct tg_vaccine_key {
    __u64 fingerprint;        /* FNV-1a over the padded bytes and the length, see bpf/vaccine.h */
    __u16 dest_port;
    __u8 proto;
    __u8 _pad[5];
};
TG_ASSERT_SIZE(struct tg_vaccine_key, 16);

struct tg_vaccine {
    __u64 until_ns;           /* 0: until released */
    __u64 packets;
    __u64 id;                 /* chosen by the service, shown in events */
};
TG_ASSERT_SIZE(struct tg_vaccine, 24);

/* --- events --------------------------------------------------------------------------------------------------- */

#define TG_EVENT_BANNED   1   /* the program has banned the source, until until_ns */
#define TG_EVENT_OBSERVED 2   /* nothing was dropped: the posture only observes */
#define TG_EVENT_FULL     4   /* it should have been banned, but the ban map is full */

/* One per incident (a source and a reason), repeated at most once per incident_ns while it lasts. */
struct tg_event {
    __u64 at_ns;
    __u64 until_ns;
    __u8 source[16];          /* of the packet, whole; IPv6 bans are by /64 */
    __u8 dest[16];
    __u16 source_port;
    __u16 dest_port;
    __u8 proto;
    __u8 family;              /* 4 or 6 */
    __u8 reason;              /* enum tg_reason */
    __u8 flags;               /* TG_EVENT_* */
    __u32 packets;            /* of this incident so far */
    __u32 detail;             /* vaccine id, feed class, length: by reason */
};
TG_ASSERT_SIZE(struct tg_event, 64);

/* --- flows ---------------------------------------------------------------------------------------------------- */

enum tg_flow_state {
    TG_FLOW_NEW = 0,          /* not TCP, or joined in the middle */
    TG_FLOW_HALF_OPEN,        /* SYN seen, perhaps answered, not confirmed */
    TG_FLOW_ESTABLISHED,
    TG_FLOW_REFUSED,          /* reset before it was established */
    TG_FLOW_CLOSED,           /* FIN from every side that was seen, or reset */
};

/* [0] is the initiator: who sent the SYN, else who was not the sender of a SYN+ACK, else who spoke first.
 * ICMP echo carries its identifier in both ports; other ICMP has zeros. */
struct tg_flow_key {
    __u8 addr[2][16];
    __u16 port[2];
    __u8 proto;
    __u8 family;              /* 4 or 6 */
    __u16 _pad;
};
TG_ASSERT_SIZE(struct tg_flow_key, 40);

#define TG_SIZE_BINS 7        /* payload length: 0, 1-64, 65-256, 257-512, 513-1024, 1025-1400, more */

/* What one side sent. Payload is what follows the transport header by the IP length (so Ethernet padding is none);
 * wire bytes are whole frames. Inter-arrival times are between packets of this side. Three cache lines, of which a
 * packet writes the first two; the third is for what seldom changes. */
struct tg_flow_side {
    __u64 last_ns;
    __u64 wire_bytes;
    __u64 payload_bytes;
    __u64 payload_sumsq;      /* sum of squared payload lengths */
    __u64 iat_sum_ns;
    __u64 iat_sumsq_us;       /* sum of squared inter-arrival times, in squared microseconds; each capped at 2^31 us */
    __u32 iat_max_us;
    __u32 packets;
    __u16 payload_min;
    __u16 payload_max;
    __u16 window;             /* of the first packet, unscaled; 0 when not TCP */
    __u8 ttl;                 /* TTL or hop limit of the first packet */
    __u8 flags_seen;          /* all TCP flags of this side, or-ed */

    __u32 sizes[TG_SIZE_BINS];
    __u32 fragments;          /* first fragments; later ones carry no ports and belong to a flow of their own */
    __u32 flags[8];           /* packets with FIN, SYN, RST, PSH, ACK, URG, ECE, CWR */

    __u64 first_ns;           /* 0: this side has not been seen */
    __u32 sampled_bytes;      /* payload handed to inspection */
    __u32 syn_seq;            /* sequence number of the last SYN */
    __u16 illegal_flags;      /* packets with no flag, FIN alone, SYN+FIN, SYN+RST, FIN+PSH+URG, all flags */
    __u16 syn_retries;        /* SYNs that repeated syn_seq */
    __u16 mss;                /* option of the first SYN; 0 when absent */
    __u8 _pad[42];
};
TG_ASSERT_SIZE(struct tg_flow_side, 192);

#define TG_SAID 1             /* this side has been seen */
#define TG_SAID_FIN 2         /* and has sent FIN */

/* Seven cache lines. A slot is live while first_ns of either side is set; `incarnation` changes when another flow takes
 * the slot, so a reader that saw the same incarnation twice has seen the same flow grow. */
struct tg_flow {
    struct tg_flow_key key;
    __u32 incarnation;
    __u8 state;               /* enum tg_flow_state */
    __u8 icmp_type;           /* of the first packet */
    __u8 icmp_code;
    __u8 _pad;
    __u32 ifindex;
    __u16 vlan;               /* inner tag of the first packet, 0 without */
    __u8 said[2];             /* TG_SAID* of each side: spares a look at the other one */
    __u64 last_ns;            /* of either side */
    struct tg_flow_side side[2];
};
TG_ASSERT_SIZE(struct tg_flow, 448);

#define TG_FLOW_WAYS 4

/* The index of the flow table: one line says which of the four records of a set is whose, and how old. The record of
 * a way is at way * sets + set: while few flows live, their records lie close together.
 * A reader scans this (8 bytes a flow) and touches only the records that are alive. */
struct tg_flow_tag {
    __u32 hash;               /* 0: empty */
    __u32 seen;               /* tick of the last packet << 2 | TG_FLOW_YOUNG | TG_FLOW_DONE */
};
#define TG_FLOW_YOUNG 1       /* one packet so far: goes first when room is needed */
#define TG_FLOW_DONE  2       /* closed or refused: goes next */

struct tg_flow_set {
    struct tg_flow_tag tag[TG_FLOW_WAYS];
};
TG_ASSERT_SIZE(struct tg_flow_set, 32);

/* --- payload samples ------------------------------------------------------------------------------------------ */

#define TG_SAMPLE_MAX 1472    /* payload bytes in one sample */

/* Variable length in the ring: this header, then `captured` bytes of payload. */
struct tg_sample {
    __u64 at_ns;
    struct tg_flow_key key;   /* as in the flow record */
    __u32 slot;               /* index of the flow record, 2^32-1 without one */
    __u32 incarnation;        /* of that record */
    __u32 seq;                /* TCP sequence number of the first payload byte; 0 otherwise */
    __u32 ack;
    __u32 offset;             /* payload bytes of this side that were seen before this packet */
    __u16 payload;            /* length of the payload on the wire */
    __u16 captured;           /* of which so many follow */
    __u8 side;                /* 0: from the initiator, 1: from the responder */
    __u8 tcp_flags;
    __u8 ttl;
    __u8 _pad[5];
};
TG_ASSERT_SIZE(struct tg_sample, 80);

/* --- sources (per-source budgets) ----------------------------------------------------------------------------- */

enum tg_budget_name {
    TG_OF_SYN = 0,
    TG_OF_UDP,
    TG_OF_ICMP,
    TG_OF_FRAGMENT,
    TG_OF_TOTAL,
    TG_SOURCE_BUDGETS,        /* the above are per source */
    TG_OF_PREFIX = TG_SOURCE_BUDGETS, /* per IPv4 /24 or IPv6 /48 */
    TG_OF_AMPLIFIED,          /* per destination: large UDP answers from ports that amplify */
    TG_OF_SYN_DEST,           /* per destination address and port: SYNs from anybody */
    TG_OF_EVENTS,             /* per CPU */
    TG_OF_SAMPLES,            /* per CPU */
    TG_BUDGETS,
};

#define TG_SOURCE_WAYS 4

/* Four sources in one cache line, with what every packet needs: most packets spend from the total budget alone. */
struct tg_source_set {
    __u64 tag[TG_SOURCE_WAYS];   /* IPv4 address, or the first 64 bits of an IPv6 address; 0: empty */
    __u32 seen[TG_SOURCE_WAYS];  /* tick of the last packet << 1, lowest bit set from the second packet on */
    __u32 total[TG_SOURCE_WAYS]; /* milli-tokens left of TG_OF_TOTAL */
};
TG_ASSERT_SIZE(struct tg_source_set, 64);

/* The other budgets of one source, at way * sets + set. They are the source's only while `owner` says so. */
struct tg_source_kinds {
    __u32 owner;              /* upper half of the source's hash, never 0 */
    __u32 seen;               /* tick of the last packet of these kinds */
    __u32 tokens[TG_OF_TOTAL];   /* milli-tokens left */
};
TG_ASSERT_SIZE(struct tg_source_kinds, 24);

/* One bucket of the prefix and destination tables; direct mapped with a tag. */
struct tg_meter {
    __u64 tag;
    __u32 seen;               /* tick */
    __u32 tokens;             /* milli-tokens left */
    __u64 packets;            /* since the tag took the slot */
    __u64 over;               /* of which beyond the budget */
};
TG_ASSERT_SIZE(struct tg_meter, 32);

/* One slot of the incident table: keeps events at one per source and reason. */
struct tg_incident {
    __u64 tag;                /* hash of source and reason */
    __u32 told;               /* tick of the last event */
    __u32 packets;
};
TG_ASSERT_SIZE(struct tg_incident, 16);

/* --- knobs: one page, written by the service while the program runs ------------------------------------------- */

/* What becomes of SYNs beyond a destination's rate. They are told and counted in any case. */
enum tg_syn_flood_answer { TG_SYN_PASS = 0, TG_SYN_DROP = 1, TG_SYN_COOKIE = 2 };

enum tg_posture { TG_OBSERVE = 0, TG_ENFORCE = 1, TG_HARDENED = 2 };

/* refill 0 switches the budget off. In TG_HARDENED both halves count half. */
struct tg_budget {
    __u64 refill;             /* milli-tokens per tick, as 48.16 fixed point */
    __u32 burst;              /* milli-tokens */
    __u32 _pad;
};
TG_ASSERT_SIZE(struct tg_budget, 16);

struct tg_knobs {
    __u32 posture;            /* enum tg_posture */
    __u32 drop_malformed;     /* 0: malformed packets are judged like others */
    __u64 ban_ns;             /* a source over its budget is banned so long; 0: it only loses the packets beyond */
    __u64 incident_ns;        /* an incident is told again after so long */
    __u64 seed;               /* of every hash, chosen when the maps are made: collisions cannot be aimed */
    __u64 replay_now_ns;      /* the clock of a replay */
    __u64 clock_tick_ns;      /* nanoseconds per jiffy */
    __s64 clock_offset_ns;    /* CLOCK_MONOTONIC minus jiffies * clock_tick_ns */
    __u32 prefix_bans;        /* how many there are; 0 spares the lookup */
    __u32 vaccines;
    __u32 sample_bytes;       /* payload bytes per flow and side that go to inspection; 0: no sampling */
    __u32 amplified_bytes;    /* UDP payload from which an answer counts as amplified */
    __u32 flow_idle_ticks;    /* a flow that was silent so long may be replaced by anybody */
    __u32 syn_flood_answer;   /* enum tg_syn_flood_answer */
    __u32 ban_filter;         /* which of the two ban filters is read: 0 or 1 */
    __u32 replay_wire_bytes;  /* length on the wire of a frame that the capture cut short; 0: as long as it is */
    struct tg_budget budget[TG_BUDGETS];
};
TG_ASSERT_SIZE(struct tg_knobs, 248);

/* One page of a filter or of a blocklist snapshot. */
#define TG_PAGE 4096
struct tg_page {
    __u8 byte[TG_PAGE];
};

/* --- blocklist snapshots: pages of an inner map, laid out by bpf/blocklist.h ---------------------------------- */

#define TG_SNAPSHOT_PAGES  6912  /* IPv4: 27 MiB, reserved only while a snapshot is published */
#define TG_SNAPSHOT6_PAGES 9216  /* IPv6: 36 MiB */

#endif
