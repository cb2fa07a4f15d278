/* What a blocklist lookup costs: the harness that gives every packet another source, and the structures to compare.
 *
 * The mutator writes the next source address from a table into the packet and tail-calls the program under test, so
 * that no program sees the same source twice in a row. floor is what the harness costs with a program that only looks
 * at the header. */
#include "blocklist.h"
#include "shared.h"
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

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

#define SNAPSHOT(name, pages)                                     \
	struct {                                                  \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);         \
		__uint(key_size, 4);                              \
		__uint(value_size, 4);                            \
		__uint(max_entries, 1);                           \
		__array(values, struct {                          \
			__uint(type, BPF_MAP_TYPE_ARRAY);         \
			__uint(key_size, 4);                      \
			__uint(value_size, BL_PAGE_BYTES);        \
			__uint(max_entries, pages);               \
			__uint(map_flags, BPF_F_MMAPABLE);        \
		});                                               \
	} name SEC(".maps")

SNAPSHOT(snapshot4, TG_SNAPSHOT_PAGES);
SNAPSHOT(snapshot6, TG_SNAPSHOT6_PAGES);

struct prefix4 {
	__u32 bits;
	__u32 addr;
};

struct prefix6 {
	__u32 bits;
	struct in6_addr addr;
};

#define TRIE(name, type_of_key)                                   \
	struct {                                                  \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);              \
		__uint(max_entries, 1100000);                     \
		__uint(map_flags, BPF_F_NO_PREALLOC);             \
		__type(key, type_of_key);                         \
		__type(value, __u32);                             \
	} name SEC(".maps")

TRIE(trie4, struct prefix4);
TRIE(trie6, struct prefix6);

__u32 cursor;

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

SEC("xdp")
int mutate4(struct xdp_md *ctx)
{
	struct iphdr *ip = header(ctx, sizeof(*ip));
	struct source *source = next_source();

	if (!ip || !source)
		return XDP_ABORTED;
	ip->saddr = source->addr.in6_u.u6_addr32[0];
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
int floor4(struct xdp_md *ctx)
{
	struct iphdr *ip = header(ctx, sizeof(*ip));

	return ip && ip->saddr == 1 ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int floor6(struct xdp_md *ctx)
{
	struct ipv6hdr *ip = header(ctx, sizeof(*ip));

	return ip && ip->saddr.in6_u.u6_addr32[0] == 1 ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int image4(struct xdp_md *ctx)
{
	struct iphdr *ip = header(ctx, sizeof(*ip));
	__u32 slot = 0;
	void *inner = bpf_map_lookup_elem(&snapshot4, &slot);

	return ip && inner && blocklist4(inner, bpf_ntohl(ip->saddr)) ? XDP_DROP : XDP_PASS;
}

SEC("xdp")
int image6(struct xdp_md *ctx)
{
	struct ipv6hdr *ip = header(ctx, sizeof(*ip));
	__u32 slot = 0;
	void *inner = bpf_map_lookup_elem(&snapshot6, &slot);

	return ip && inner && blocklist6(inner, &ip->saddr) ? XDP_DROP : XDP_PASS;
}

SEC("xdp")
int lpm4(struct xdp_md *ctx)
{
	struct iphdr *ip = header(ctx, sizeof(*ip));
	struct prefix4 key = {.bits = 32};

	if (!ip)
		return XDP_PASS;
	key.addr = ip->saddr;
	return bpf_map_lookup_elem(&trie4, &key) ? XDP_DROP : XDP_PASS;
}

SEC("xdp")
int lpm6(struct xdp_md *ctx)
{
	struct ipv6hdr *ip = header(ctx, sizeof(*ip));
	struct prefix6 key = {.bits = 128};

	if (!ip)
		return XDP_PASS;
	key.addr = ip->saddr;
	return bpf_map_lookup_elem(&trie6, &key) ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";
