/* The harness of the measurements: every packet gets another source address, then the program under test gets the
 * packet by a tail call. drop_at_once is what the harness costs with a program that drops at once; send puts packets on a
 * real wire instead, and discard is what that costs without the wire. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define SOURCES (1 << 20)

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} under_test SEC(".maps");

struct source {
	struct in6_addr addr; /* IPv4: the first four bytes */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SOURCES);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct source);
} sources SEC(".maps");

__u32 cursor;
__u64 whole_frame[7]; /* the first 56 bytes of what send_syn4 sends, as something behind it may have changed them all */
__u32 out_ifindex; /* of the device that send4 sends through */

static __always_inline struct source *next_source(void)
{
	__u32 at = cursor++ & (SOURCES - 1);

	return bpf_map_lookup_elem(&sources, &at);
}

static __always_inline void *header(struct xdp_md *ctx, __u32 size)
{
	void *data = (void *)(long)ctx->data + ETH_HLEN;

	return data + size > (void *)(long)ctx->data_end ? NULL : data;
}

static __always_inline int rewrite4(struct xdp_md *ctx)
{
	struct iphdr *ip = header(ctx, sizeof(*ip));
	struct source *source = next_source();

	if (!ip || !source)
		return 0;
	ip->saddr = source->addr.in6_u.u6_addr32[0];
	return 1;
}

SEC("xdp")
int mutate4(struct xdp_md *ctx)
{
	if (rewrite4(ctx))
		bpf_tail_call(ctx, &under_test, 0);
	return XDP_ABORTED;
}

SEC("xdp")
int mutate6(struct xdp_md *ctx)
{
	struct ipv6hdr *ip = header(ctx, sizeof(*ip));
	struct source *source = next_source();

	if (!ip || !source)
		return XDP_ABORTED;
	ip->saddr = source->addr;
	bpf_tail_call(ctx, &under_test, 0);
	return XDP_ABORTED;
}

SEC("xdp")
int drop_at_once(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_DROP;
}

/* The stack throws away what has a wrong checksum, long before a filter would see it. */
static __always_inline void checksum(struct xdp_md *ctx)
{
	struct iphdr *ip = header(ctx, sizeof(*ip));
	__u16 *word = (__u16 *)ip;
	__u32 sum = 0;

	if (!ip)
		return;
	ip->check = 0;
#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += word[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~sum;
}

SEC("xdp")
int send4(struct xdp_md *ctx)
{
	if (!rewrite4(ctx))
		return XDP_ABORTED;
	checksum(ctx);
	return bpf_redirect(out_ifindex, 0);
}

/* A listener believes a SYN only with the right checksum: 20 bytes of TCP behind 20 of IP. */
static __always_inline void tcp_checksum(struct xdp_md *ctx)
{
	struct {
		struct iphdr ip;
		__u16 tcp[10];
	} *both = header(ctx, sizeof(*both));
	__u32 sum = bpf_htons(6) + bpf_htons(20);

	if (!both)
		return;
	both->tcp[8] = 0;
#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += both->tcp[i];
	sum += (both->ip.saddr & 0xffff) + (both->ip.saddr >> 16) + (both->ip.daddr & 0xffff) + (both->ip.daddr >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	both->tcp[8] = ~sum;
}

SEC("xdp")
int send_syn4(struct xdp_md *ctx)
{
	__u64 *frame = (void *)(long)ctx->data;

	if ((void *)(frame + 7) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
#pragma unroll
	for (int i = 0; i < 7; i++)
		frame[i] = whole_frame[i];
	if (!rewrite4(ctx))
		return XDP_ABORTED;
	checksum(ctx);
	tcp_checksum(ctx);
	return bpf_redirect(out_ifindex, 0);
}

SEC("xdp")
int discard4(struct xdp_md *ctx)
{
	if (!rewrite4(ctx))
		return XDP_ABORTED;
	checksum(ctx);
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";
