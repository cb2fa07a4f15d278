/* Reading a frame: Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with extension headers, fragments, TCP, UDP,
 * ICMP. Each step moves the cursor over one header, checks the bound first, and says what comes next.
 *
 * Two results: `unparsed` is the reason with which the frame passes if nobody objects (TG_CLEAN when it was read to the
 * end), and `malformed` is the reason to drop it when its own fields contradict each other (0 when they do not).
 * Addresses are known as soon as `family` is set, so bans hold for frames that could not be read further.
 */
#ifndef TG_PARSE_H
#define TG_PARSE_H

#include "shared.h"

/* Longer chains of extension headers are not seen in legitimate traffic, and the verifier needs a bound. */
#define MAX_EXTENSIONS 6
#define MAX_VLAN_TAGS 2
#define MAX_TCP_OPTIONS 6

#define ETHERTYPE_IP4 0x0800
#define ETHERTYPE_ARP 0x0806
#define ETHERTYPE_IP6 0x86DD
#define ETHERTYPE_VLAN 0x8100
#define ETHERTYPE_QINQ 0x88A8

#define PROTO_HOPOPTS 0
#define PROTO_ICMP 1
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_ROUTING 43
#define PROTO_FRAGMENT 44
#define PROTO_AH 51
#define PROTO_ICMP6 58
#define PROTO_DSTOPTS 60
#define PROTO_MOBILITY 135
#define PROTO_HIP 139
#define PROTO_SHIM6 140

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_PSH 0x08
#define TCP_ACK 0x10
#define TCP_URG 0x20

enum fragment_kind { NOT_FRAGMENT = 0, FIRST_FRAGMENT, LATER_FRAGMENT };

/* An address as four words in network order; IPv4 is mapped. */
struct address {
    __u32 word[4];
};

/* The frame while it is being read. */
struct frame {
    void *data;
    void *end;
    void *cursor;
};

/* No header starts farther in than this: two tags, and six extension headers of 2 KiB. */
#define CURSOR_MAX 0x3fff

/* What was read. No pointers, so that it can be handed to functions that the verifier checks by themselves. */
struct packet {
    struct address source;
    struct address dest;
    __u32 wire_bytes;       /* of the whole frame */
    __u32 frame_bytes;      /* of which are here; a replayed capture may have cut the rest */
    __u32 cursor;           /* offset of the header to be read next */
    __u32 ip_payload;       /* bytes after the IP header and its extensions, by the IP length */
    __u32 payload;          /* bytes after the transport header */
    __u32 payload_offset;   /* of these in the frame */
    __u32 seq;
    __u32 ack;
    __u32 unparsed;         /* enum tg_reason */
    __u32 malformed;        /* enum tg_reason, or 0 */
    __u16 source_port;
    __u16 dest_port;
    __u16 vlan;
    __u16 window;
    __u16 mss;
    __u16 segment_bytes;    /* payload of each packet that offload has joined into this frame; 0: it is one packet */
    __u8 family;            /* 4, 6, or 0 while no address is known */
    __u8 proto;
    __u8 fragment;          /* enum fragment_kind */
    __u8 tcp_flags;
    __u8 ttl;
    __u8 icmp_type;
    __u8 icmp_code;
};

struct ethernet {
    __u8 dest[6];
    __u8 source[6];
    __be16 type;
} __attribute__((packed));

struct vlan_tag {
    __be16 tci;
    __be16 type;
};

struct ip4 {
    __u8 version_ihl;
    __u8 tos;
    __be16 total_length;
    __be16 id;
    __be16 fragment;
    __u8 ttl;
    __u8 proto;
    __be16 checksum;
    __u32 source;
    __u32 dest;
};

struct ip6 {
    __be32 version_class_label;
    __be16 payload_length;
    __u8 next;
    __u8 hop_limit;
    __u32 source[4];
    __u32 dest[4];
};

struct ip6_extension {
    __u8 next;
    __u8 length;
    __be16 rest; /* of a fragment header: offset and the more-fragments bit */
};

struct tcp {
    __be16 source;
    __be16 dest;
    __be32 seq;
    __be32 ack;
    __u8 data_offset;
    __u8 flags;
    __be16 window;
    __be16 checksum;
    __be16 urgent;
};

struct udp {
    __be16 source;
    __be16 dest;
    __be16 length;
    __be16 checksum;
};

struct icmp {
    __u8 type;
    __u8 code;
    __be16 checksum;
    __be16 id;
    __be16 sequence;
};

/* The header at the cursor, or NULL when the frame ends inside it. */
#define HEADER_AT_CURSOR(f, type) ((f)->cursor + sizeof(type) > (f)->end ? (type *)0 : (type *)(f)->cursor)

/* Returns the ethertype after the tags, or 0 when the frame ends before it. */
static __always_inline __u32 parse_link(struct frame *f, struct packet *p)
{
    struct ethernet *eth = HEADER_AT_CURSOR(f, struct ethernet);

    if (!eth)
        return 0;
    f->cursor += sizeof(*eth);
    __u32 type = bpf_ntohs(eth->type);
#pragma unroll
    for (int i = 0; i < MAX_VLAN_TAGS; i++) {
        if (type != ETHERTYPE_VLAN && type != ETHERTYPE_QINQ)
            break;
        struct vlan_tag *tag = HEADER_AT_CURSOR(f, struct vlan_tag);
        if (!tag)
            return 0;
        f->cursor += sizeof(*tag);
        p->vlan = bpf_ntohs(tag->tci) & 0x0fff;
        type = bpf_ntohs(tag->type);
    }
    return type == ETHERTYPE_VLAN || type == ETHERTYPE_QINQ ? 0 : type;
}

/* What a fragment's place in its datagram says about it; offset and length in bytes. */
static __always_inline void parse_fragment(struct packet *p, __u32 offset, __u32 more)
{
    if (!offset && !more)
        return; /* an atomic fragment is a whole datagram */
    p->fragment = offset ? LATER_FRAGMENT : FIRST_FRAGMENT;
    if (offset + p->ip_payload > 65535)
        p->malformed = TG_BAD_FRAGMENT; /* reassembles beyond the largest datagram ("ping of death") */
    else if (offset && offset < 16 && p->proto == PROTO_TCP)
        p->malformed = TG_BAD_FRAGMENT; /* overlaps the TCP header of the first one (RFC 1858) */
    else if (more && (p->ip_payload & 7))
        p->malformed = TG_BAD_FRAGMENT; /* only the last one may end off an 8-byte boundary */
}

static __always_inline int parse_ip4(struct frame *f, struct packet *p)
{
    struct ip4 *ip = HEADER_AT_CURSOR(f, struct ip4);

    if (!ip || (ip->version_ihl >> 4) != 4)
        return -1;
    __u32 header = (ip->version_ihl & 15) * 4;
    __u32 total = bpf_ntohs(ip->total_length);
    __u32 room = p->wire_bytes - (__u32)(f->cursor - f->data);

    p->family = 4;
    p->source = (struct address){ { 0, 0, bpf_htonl(0xffff), ip->source } };
    p->dest = (struct address){ { 0, 0, bpf_htonl(0xffff), ip->dest } };
    p->ttl = ip->ttl;
    p->proto = ip->proto;
    if (!total)
        total = room; /* frames joined by segmentation offload leave the field empty */
    if (header < sizeof(*ip) || total < header || total > room) {
        p->malformed = TG_BAD_LENGTH;
        return -1;
    }
    if (f->cursor + header > f->end) {
        p->unparsed = TG_UNPARSED_IP;
        return -1;
    }
    f->cursor += header;
    p->ip_payload = total - header;
    __u32 fragment = bpf_ntohs(ip->fragment);
    parse_fragment(p, (fragment & 0x1fff) * 8, fragment & 0x2000);
    return p->proto;
}

static __always_inline int parse_ip6(struct frame *f, struct packet *p)
{
    struct ip6 *ip = HEADER_AT_CURSOR(f, struct ip6);

    if (!ip || (bpf_ntohl(ip->version_class_label) >> 28) != 6)
        return -1;
    __u32 length = bpf_ntohs(ip->payload_length);

    p->family = 6;
    p->ttl = ip->hop_limit;
    p->proto = ip->next;
    __builtin_memcpy(&p->source, ip->source, 16);
    __builtin_memcpy(&p->dest, ip->dest, 16);
    f->cursor += sizeof(*ip);
    __u32 room = p->wire_bytes - (__u32)(f->cursor - f->data);
    if (length > room) {
        p->malformed = TG_BAD_LENGTH;
        return -1;
    }
    p->ip_payload = length ? length : room; /* jumbograms leave the field empty */
    return p->proto;
}

static __always_inline int is_extension(__u32 proto)
{
    return proto == PROTO_HOPOPTS || proto == PROTO_ROUTING || proto == PROTO_FRAGMENT || proto == PROTO_AH ||
           proto == PROTO_DSTOPTS || proto == PROTO_MOBILITY || proto == PROTO_HIP || proto == PROTO_SHIM6;
}

/* Follows the chain of extension headers to the transport protocol, or to the first that cannot be read. */
static __always_inline int parse_extensions(struct frame *f, struct packet *p)
{
    f->cursor = f->data + (p->cursor & CURSOR_MAX);
#pragma clang loop unroll(disable)
    for (int i = 0; i < MAX_EXTENSIONS; i++) {
        struct ip6_extension *extension = HEADER_AT_CURSOR(f, struct ip6_extension);
        if (!extension)
            break;
        __u32 units = extension->length, length = (units + 1) * 8;
        __u32 kind = p->proto, place = bpf_ntohs(extension->rest);
        if (kind == PROTO_FRAGMENT)
            length = 8;
        if (kind == PROTO_AH)
            length = (units + 2) * 4;
        if (length > p->ip_payload) {
            p->malformed = TG_BAD_LENGTH;
            return 0;
        }
        p->proto = extension->next;
        f->cursor += length;
        if (f->cursor > f->end)
            break;
        p->ip_payload -= length;
        p->cursor = f->cursor - f->data;
        if (kind == PROTO_FRAGMENT)
            parse_fragment(p, place & 0xfff8, place & 1);
        if (p->fragment == LATER_FRAGMENT || !is_extension(p->proto))
            return 1;
    }
    p->unparsed = TG_UNPARSED_EXTENSION;
    return 0;
}

/* Maximum segment size from the options of a SYN; `end` is how many bytes of options there are. */
static __always_inline void parse_mss(struct frame *f, struct packet *p, __u32 end)
{
    void *option = f->cursor;
    __u32 at = 0;

    for (int i = 0; i < MAX_TCP_OPTIONS; i++) {
        if (at + 4 > end || option + 4 > f->end)
            return;
        __u8 kind = *(__u8 *)option;
        __u8 length = *(__u8 *)(option + 1);
        if (kind == 2 && length == 4) {
            p->mss = bpf_ntohs(*(__be16 *)(option + 2));
            return;
        }
        if (kind == 0)
            return;
        if (kind == 1)
            length = 1;
        else if (length < 2)
            return;
        option += length;
        at += length;
    }
}

static __always_inline void parse_tcp(struct frame *f, struct packet *p)
{
    struct tcp *tcp = HEADER_AT_CURSOR(f, struct tcp);

    if (p->ip_payload < sizeof(*tcp)) {
        p->malformed = p->fragment ? TG_BAD_FRAGMENT : TG_BAD_LENGTH;
        return;
    }
    if (!tcp) {
        p->unparsed = TG_UNPARSED_TRANSPORT;
        return;
    }
    __u32 header = (tcp->data_offset >> 4) * 4;

    p->source_port = bpf_ntohs(tcp->source);
    p->dest_port = bpf_ntohs(tcp->dest);
    p->seq = bpf_ntohl(tcp->seq);
    p->ack = bpf_ntohl(tcp->ack);
    p->tcp_flags = tcp->flags;
    p->window = bpf_ntohs(tcp->window);
    if (header < sizeof(*tcp) || (header > p->ip_payload && !p->fragment)) {
        p->malformed = TG_BAD_LENGTH;
        return;
    }
    p->payload_offset += header;
    p->payload = header < p->ip_payload ? p->ip_payload - header : 0;
    if ((tcp->flags & TCP_SYN) && header > sizeof(*tcp)) {
        f->cursor += sizeof(*tcp);
        parse_mss(f, p, header - sizeof(*tcp));
    }
}

static __always_inline void parse_udp(struct frame *f, struct packet *p)
{
    struct udp *udp = HEADER_AT_CURSOR(f, struct udp);

    if (p->ip_payload < sizeof(*udp)) {
        p->malformed = p->fragment ? TG_BAD_FRAGMENT : TG_BAD_LENGTH;
        return;
    }
    if (!udp) {
        p->unparsed = TG_UNPARSED_TRANSPORT;
        return;
    }
    __u32 length = bpf_ntohs(udp->length);

    p->source_port = bpf_ntohs(udp->source);
    p->dest_port = bpf_ntohs(udp->dest);
    /* 0 stands for "to the end" in jumbograms and in datagrams joined by segmentation offload */
    if (length && (length < sizeof(*udp) || (length > p->ip_payload && !p->fragment))) {
        p->malformed = TG_BAD_LENGTH;
        return;
    }
    p->payload_offset += sizeof(*udp);
    p->payload = (length && length < p->ip_payload ? length : p->ip_payload) - sizeof(*udp);
}

static __always_inline void parse_icmp(struct frame *f, struct packet *p)
{
    struct icmp *icmp = HEADER_AT_CURSOR(f, struct icmp);

    if (p->ip_payload < sizeof(*icmp)) {
        p->malformed = p->fragment ? TG_BAD_FRAGMENT : TG_BAD_LENGTH;
        return;
    }
    if (!icmp) {
        p->unparsed = TG_UNPARSED_TRANSPORT;
        return;
    }
    p->icmp_type = icmp->type;
    p->icmp_code = icmp->code;
    __u8 request = p->proto == PROTO_ICMP ? 8 : 128, reply = p->proto == PROTO_ICMP ? 0 : 129;
    if (icmp->type == request || icmp->type == reply)
        p->source_port = p->dest_port = bpf_ntohs(icmp->id);
    p->payload_offset += sizeof(*icmp);
    p->payload = p->ip_payload - sizeof(*icmp);
}

static __always_inline int parse_transport(struct frame *f, struct packet *p)
{
    f->cursor = f->data + (p->cursor & CURSOR_MAX);
    p->payload_offset = p->cursor;
    p->payload = p->ip_payload;
    if (p->fragment == LATER_FRAGMENT)
        p->unparsed = TG_LATER_FRAGMENT;
    else if (p->malformed)
        return 0;
    else if (p->proto == PROTO_TCP)
        parse_tcp(f, p);
    else if (p->proto == PROTO_UDP)
        parse_udp(f, p);
    else if ((p->proto == PROTO_ICMP && p->family == 4) || (p->proto == PROTO_ICMP6 && p->family == 6))
        parse_icmp(f, p);
    else
        p->unparsed = TG_OTHER_PROTOCOL;
    return 0;
}

/* The frame is read in three steps, each of which the verifier checks by itself; between them the cursor is an offset.
 * Each returns whether there is more to read. */
static __always_inline int parse_network(struct frame *f, struct packet *p)
{
    __u32 type;
    int proto;

    f->cursor = f->data;
    type = parse_link(f, p);
    if (type == ETHERTYPE_IP4) {
        proto = parse_ip4(f, p);
    } else if (type == ETHERTYPE_IP6) {
        proto = parse_ip6(f, p);
    } else {
        p->unparsed = type == ETHERTYPE_ARP ? TG_ARP : type ? TG_NOT_IP : TG_UNPARSED_LINK;
        return 0;
    }
    if (proto < 0 && !p->unparsed)
        p->unparsed = TG_UNPARSED_IP;
    p->cursor = f->cursor - f->data;
    return proto >= 0;
}

/* Router and neighbour solicitation, advertisement and redirect; genuine only with hop limit 255 (RFC 4861). */
static __always_inline int is_neighbour_discovery(const struct packet *p)
{
    return p->proto == PROTO_ICMP6 && p->family == 6 && p->ttl == 255 && !p->fragment && p->icmp_type >= 133 &&
           p->icmp_type <= 137;
}

#endif
