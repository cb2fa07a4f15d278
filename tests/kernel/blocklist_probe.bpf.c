/* Asks bpf/blocklist.h about a table of addresses: the lookup alone, without packets. */
#include "blocklist.h"
#include "shared.h"

#define QUESTIONS (1 << 20)

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

/* IPv4 addresses stand in word 0, in host byte order. */
struct question {
	struct in6_addr addr;
	__u32 answer;
	__u32 unused[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, QUESTIONS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct question);
} questions SEC(".maps");

__u32 cursor;

static __always_inline struct question *next_question(void)
{
	__u32 at = cursor++;

	return bpf_map_lookup_elem(&questions, &at);
}

SEC("xdp")
int probe4(struct xdp_md *ctx)
{
	__u32 slot = 0;
	void *inner = bpf_map_lookup_elem(&snapshot4, &slot);
	struct question *question = next_question();

	(void)ctx;
	if (inner && question)
		question->answer = blocklist4(inner, question->addr.in6_u.u6_addr32[0]);
	return XDP_PASS;
}

SEC("xdp")
int probe6(struct xdp_md *ctx)
{
	__u32 slot = 0;
	void *inner = bpf_map_lookup_elem(&snapshot6, &slot);
	struct question *question = next_question();

	(void)ctx;
	if (inner && question)
		question->answer = blocklist6(inner, &question->addr);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
