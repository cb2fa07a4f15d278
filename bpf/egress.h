/* What leaves the node, for the other side of the flow records: read and accounted, never judged and never stopped.
 *
 * No verdict, no ban, no budget, no payload sample, no count among the frames judged: whatever this program does, the
 * frame goes on. Which records it may begin, bpf/flows.h says. It runs before the queues of the interface, so a frame
 * that a queue drops later has been accounted; it sees frames before segmentation and counts what they become.
 */
#ifndef TG_EGRESS_H
#define TG_EGRESS_H

#include "flows.h"

static __always_inline int carries(__u32 ifindex);

/* The node only passes it on, and it came in through an interface whose program has accounted it. */
static __always_inline int was_accounted(const struct __sk_buff *skb)
{
    __u32 from = skb->ingress_ifindex;

    return from && carries(from);
}

/* The linear part of the buffer ended inside the headers. */
static __always_inline int is_cut_short(const struct packet *p)
{
    return p->unparsed >= TG_UNPARSED_LINK && p->unparsed <= TG_UNPARSED_TRANSPORT;
}

/* Accounts a parsed frame at the time r->now_ns. Only a SYN may take the place that a known source might: the node
 * has chosen to speak. A datagram to somebody new takes what is free, as a newcomer's would. */
static __always_inline void account_leaving(struct reflex *r)
{
    const struct packet *p = &r->packet;

    if (!p->family || p->malformed)
        return;
    r->leaving = 1;
    r->known_source = p->proto == PROTO_TCP;
    account(r);
}

#endif
