/* The peer: an XDP firewall of the usual build, made of the kernel's own tables. Bans, sources and flows in LRU hashes,
 * the list in an LPM trie because it holds prefixes; IPv4 and TCP only, which is less work than the skin does. lpm4
 * and lpm6 are the bare list lookup. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define RATE_PPS 50000
#define BURST 100000

#define TABLE(map_type, map_name, key_type, value_type, size, flags) \
	struct {                                                     \
		__uint(type, map_type);                              \
		__type(key, key_type);                               \
		__type(value, value_type);                           \
		__uint(max_entries, size);                           \
		__uint(map_flags, flags);                            \
	} map_name SEC(".maps")

struct prefix4 {
	__u32 bits;
	__u32 addr;
};

struct prefix6 {
	__u32 bits;
	struct in6_addr addr;
};

struct ban {
	__u64 until_ns;
	__u64 packets;
};

struct bucket {
	__u64 refilled_ns;
	__u64 tokens;
	__u64 packets;
};

struct flow_key {
	__u32 saddr, daddr;
	__u16 sport, dport;
	__u32 proto;
};

struct flow {
	__u64 first_ns, last_ns, packets, bytes, squares, gap_sum, gap_squares, gap_max;
	__u32 flags[8];
};

TABLE(BPF_MAP_TYPE_LPM_TRIE, trie4, struct prefix4, __u32, 1100000, BPF_F_NO_PREALLOC);
TABLE(BPF_MAP_TYPE_LPM_TRIE, trie6, struct prefix6, __u32, 1100000, BPF_F_NO_PREALLOC);
TABLE(BPF_MAP_TYPE_LRU_HASH, bans, __u32, struct ban, 262144, 0);
TABLE(BPF_MAP_TYPE_LRU_HASH, sources, __u32, struct bucket, 262144, 0);
TABLE(BPF_MAP_TYPE_LRU_HASH, flows, struct flow_key, struct flow, 131072, 0);
TABLE(BPF_MAP_TYPE_PERCPU_ARRAY, counters, __u32, __u64, 8, 0);

static __always_inline int verdict(__u32 why, int action)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &why);

	if (counter)
		++*counter;
	return action;
}

static __always_inline int within_rate(__u32 source, __u64 now_ns)
{
	struct bucket *bucket = bpf_map_lookup_elem(&sources, &source);

	if (!bucket) {
		struct bucket fresh = { .refilled_ns = now_ns, .tokens = BURST - 1, .packets = 1 };

		bpf_map_update_elem(&sources, &source, &fresh, BPF_ANY);
		return 1;
	}
	__u64 earned = (now_ns - bucket->refilled_ns) * RATE_PPS / 1000000000;

	if (earned) {
		bucket->tokens += earned;
		bucket->refilled_ns = now_ns;
		if (bucket->tokens > BURST)
			bucket->tokens = BURST;
	}
	bucket->packets++;
	if (!bucket->tokens)
		return 0;
	bucket->tokens--;
	return 1;
}

static __always_inline void account(const struct iphdr *ip, const struct tcphdr *tcp, __u64 bytes, __u64 now_ns)
{
	struct flow_key key = { ip->saddr, ip->daddr, tcp->source, tcp->dest, ip->protocol };
	struct flow *flow = bpf_map_lookup_elem(&flows, &key);

	if (!flow) {
		struct flow fresh = { .first_ns = now_ns, .last_ns = now_ns, .packets = 1, .bytes = bytes };

		bpf_map_update_elem(&flows, &key, &fresh, BPF_ANY);
		return;
	}
	__u64 gap = now_ns - flow->last_ns;

	flow->last_ns = now_ns;
	flow->packets++;
	flow->bytes += bytes;
	flow->squares += bytes * bytes;
	flow->gap_sum += gap;
	flow->gap_squares += (gap / 1000) * (gap / 1000);
	if (gap > flow->gap_max)
		flow->gap_max = gap;
	flow->flags[0] += tcp->fin;
	flow->flags[1] += tcp->syn;
	flow->flags[2] += tcp->rst;
	flow->flags[4] += tcp->ack;
}

SEC("xdp")
int conventional(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct tcphdr *tcp = (void *)(ip + 1);
	struct prefix4 key = { .bits = 32 };

	if ((void *)(tcp + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5 || ip->protocol != 6)
		return verdict(0, XDP_PASS);
	__u64 now_ns = bpf_ktime_get_ns();
	__u32 source = ip->saddr;
	struct ban *ban = bpf_map_lookup_elem(&bans, &source);

	if (ban && (!ban->until_ns || ban->until_ns > now_ns)) {
		ban->packets++;
		return verdict(1, XDP_DROP);
	}
	key.addr = source;
	if (bpf_map_lookup_elem(&trie4, &key))
		return verdict(2, XDP_DROP);
	if (!within_rate(source, now_ns))
		return verdict(3, XDP_DROP);
	account(ip, tcp, end - data, now_ns);
	return verdict(4, XDP_PASS);
}

SEC("xdp")
int lpm4(struct xdp_md *ctx)
{
	struct iphdr *ip = (void *)(long)ctx->data + ETH_HLEN;
	struct prefix4 key = { .bits = 32 };

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	key.addr = ip->saddr;
	return bpf_map_lookup_elem(&trie4, &key) ? XDP_DROP : XDP_PASS;
}

SEC("xdp")
int lpm6(struct xdp_md *ctx)
{
	struct ipv6hdr *ip = (void *)(long)ctx->data + ETH_HLEN;
	struct prefix6 key = { .bits = 128 };

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	key.addr = ip->saddr;
	return bpf_map_lookup_elem(&trie6, &key) ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";
