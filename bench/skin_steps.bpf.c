/* The skin's own program, whole, and more doors into it, which share the tables of the real program through their pins.
 * parsed_lookup: the whole parser, malformed frames, blocklist and bans; no rates, flows and events.
 * lookup4, lookup6: blocklist and bans behind the least that finds a source address. */
#include "reflex_arc.bpf.c"

SEC("xdp")
int parsed_lookup(struct xdp_md *ctx)
{
	struct reflex r = { .proving = 1 }; /* nothing is asked ahead for rates and flows */
	struct tg_knobs *k = knobs_page();

	if (!k)
		return XDP_PASS;
	r.packet.wire_bytes = r.packet.frame_bytes = ctx->data_end - ctx->data;
	r.now_ns = coarse_now_ns(k);
	PARSE(ctx, &r.packet, xdp);
	return r.packet.family && objection(&r) ? XDP_DROP : XDP_PASS;
}

static __always_inline int listed_or_banned(struct reflex *r)
{
	struct tg_knobs *k = knobs_page();

	if (!k)
		return XDP_PASS;
	r->now_ns = coarse_now_ns(k);
	return blocklist_class(&r->packet) || banned(r, k) ? XDP_DROP : XDP_PASS;
}

SEC("xdp")
int lookup4(struct xdp_md *ctx)
{
	struct reflex r = { .packet = { .family = 4 } };
	struct ip4 *ip = (void *)(long)ctx->data + 14;

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	r.packet.source = (struct address){ { 0, 0, bpf_htonl(0xffff), ip->source } };
	return listed_or_banned(&r);
}

SEC("xdp")
int lookup6(struct xdp_md *ctx)
{
	struct reflex r = { .packet = { .family = 6 } };
	struct ip6 *ip = (void *)(long)ctx->data + 14;

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	__builtin_memcpy(&r.packet.source, ip->source, 16);
	return listed_or_banned(&r);
}
