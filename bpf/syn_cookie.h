/* SYN cookies at the wire: in a flood of SYNs to one destination, the answer leaves before a packet buffer is made.
 *
 * The cookie is the kernel's own (bpf_tcp_gen_syncookie), so whoever returns it is let in by the kernel as after any
 * cookie, without state here. The kernel gives one only while the listener's queue is full, or always where
 * net.ipv4.tcp_syncookies is 2: until then, and for closed ports, options in the IP header, tags and anything unusual,
 * the SYN goes on to the stack. As with every cookie the connection has no window scaling and no selective
 * acknowledgements. The answer takes the place of the SYN in its frame and goes back where it came from.
 */
#ifndef TG_SYN_COOKIE_H
#define TG_SYN_COOKIE_H

#include "reflex.h"

#define ETHERNET_BYTES 14
#define TCP_HEADER_MAX 60
#define ANSWER_TCP_BYTES 24       /* the header and one option: the segment size */
#define ANSWER_MSS4 1460
#define ANSWER_MSS6 1440
#define ANSWER_TTL 64
#define SOCKET_LISTENS 10         /* TCP_LISTEN */

struct cookie_answer {
    struct tcp tcp;
    __u8 kind, length;
    __be16 mss;
};

static __always_inline __u16 folded(__u32 sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return ~sum;
}

static __always_inline __u32 summed(const void *data, __u32 words)
{
    const __u16 *word = data;
    __u32 sum = 0;

#pragma unroll
    for (int i = 0; i < words; i++)
        sum += word[i];
    return sum;
}

/* The kernel's cookie for this SYN, or a negative number when it does not want to give one. */
static __always_inline __s64 kernel_cookie(struct xdp_md *ctx, const struct packet *p, void *ip, __u32 ip_bytes)
{
    struct bpf_sock_tuple tuple = {};
    __u8 tcp[TCP_HEADER_MAX] = {};
    __u64 tcp_bytes = p->payload_offset - p->cursor;
    __u32 tuple_bytes;
    __s64 cookie = -1;

    asm volatile("" : "+r"(tcp_bytes)); /* the verifier shall see the bounds on the register that the helper gets */
    if (tcp_bytes < sizeof(struct tcp) || tcp_bytes > TCP_HEADER_MAX)
        return -1;
    if (p->family == 4) {
        tuple.ipv4.saddr = p->source.word[3];
        tuple.ipv4.daddr = p->dest.word[3];
        tuple.ipv4.sport = bpf_htons(p->source_port);
        tuple.ipv4.dport = bpf_htons(p->dest_port);
        tuple_bytes = sizeof(tuple.ipv4);
    } else {
        __builtin_memcpy(tuple.ipv6.saddr, &p->source, 16);
        __builtin_memcpy(tuple.ipv6.daddr, &p->dest, 16);
        tuple.ipv6.sport = bpf_htons(p->source_port);
        tuple.ipv6.dport = bpf_htons(p->dest_port);
        tuple_bytes = sizeof(tuple.ipv6);
    }
    if (bpf_xdp_load_bytes(ctx, ETHERNET_BYTES + ip_bytes, tcp, tcp_bytes))
        return -1;
    struct bpf_sock *socket = bpf_skc_lookup_tcp(ctx, &tuple, tuple_bytes, BPF_F_CURRENT_NETNS, 0);
    if (!socket)
        return -1;
    if (socket->state == SOCKET_LISTENS)
        cookie = bpf_tcp_gen_syncookie(socket, ip, ip_bytes, (struct tcphdr *)tcp, tcp_bytes);
    bpf_sk_release(socket);
    return cookie;
}

static __always_inline void answer_ip4(struct ip4 *ip)
{
    __be32 from = ip->source;

    ip->source = ip->dest;
    ip->dest = from;
    ip->total_length = bpf_htons(sizeof(*ip) + ANSWER_TCP_BYTES);
    ip->id = 0;
    ip->fragment = bpf_htons(0x4000);
    ip->ttl = ANSWER_TTL;
    ip->checksum = 0;
    ip->checksum = folded(summed(ip, sizeof(*ip) / 2));
}

static __always_inline void answer_ip6(struct ip6 *ip)
{
    struct address from;

    __builtin_memcpy(&from, ip->source, 16);
    __builtin_memcpy(ip->source, ip->dest, 16);
    __builtin_memcpy(ip->dest, &from, 16);
    ip->payload_length = bpf_htons(ANSWER_TCP_BYTES);
    ip->hop_limit = ANSWER_TTL;
}

/* addresses: where the two of them lie in the IP header, for the checksum. */
static __always_inline void answer_tcp(struct cookie_answer *a, __u32 cookie, const void *addresses, __u32 words, __u16 mss)
{
    __be16 port = a->tcp.source;

    a->tcp.source = a->tcp.dest;
    a->tcp.dest = port;
    a->tcp.ack = bpf_htonl(bpf_ntohl(a->tcp.seq) + 1);
    a->tcp.seq = bpf_htonl(cookie);
    a->tcp.data_offset = (ANSWER_TCP_BYTES / 4) << 4;
    a->tcp.flags = TCP_SYN | TCP_ACK;
    a->tcp.window = 0xffff;
    a->tcp.checksum = 0;
    a->tcp.urgent = 0;
    a->kind = 2;
    a->length = 4;
    a->mss = bpf_htons(mss);
    a->tcp.checksum = folded(summed(a, ANSWER_TCP_BYTES / 2) + summed(addresses, words) + bpf_htons(PROTO_TCP) +
                             bpf_htons(ANSWER_TCP_BYTES));
}

/* Turns the SYN into its own answer. Returns whether it did; if not, the frame is as it was. */
STEP int answer_syn(struct xdp_md *ctx, const struct packet *p)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    __u8 *ethernet = data, mac[6];
    __s64 cookie;

    if (!p || p->proto != PROTO_TCP || p->fragment || data + ETHERNET_BYTES > end)
        return 0;
    if (p->family == 4) {
        struct ip4 *ip = data + ETHERNET_BYTES;
        struct cookie_answer *a = (void *)(ip + 1);
        if ((void *)(a + 1) > end || p->cursor != ETHERNET_BYTES + sizeof(*ip))
            return 0;
        cookie = kernel_cookie(ctx, p, ip, sizeof(*ip));
        if (cookie < 0)
            return 0;
        answer_ip4(ip);
        answer_tcp(a, cookie, &ip->source, 4, ANSWER_MSS4);
    } else {
        struct ip6 *ip = data + ETHERNET_BYTES;
        struct cookie_answer *a = (void *)(ip + 1);
        if ((void *)(a + 1) > end || p->cursor != ETHERNET_BYTES + sizeof(*ip))
            return 0;
        cookie = kernel_cookie(ctx, p, ip, sizeof(*ip));
        if (cookie < 0)
            return 0;
        answer_ip6(ip);
        answer_tcp(a, cookie, ip->source, 16, ANSWER_MSS6);
    }
    __builtin_memcpy(mac, ethernet, 6);
    __builtin_memcpy(ethernet, ethernet + 6, 6);
    __builtin_memcpy(ethernet + 6, mac, 6);
    return 1;
}

#endif
