/* Malformed reflex: packets that no working network stack sends. Contradicting lengths were found while parsing. */
#ifndef TG_MALFORMED_H
#define TG_MALFORMED_H

#include "reflex.h"

static __always_inline int same_address(const struct address *a, const struct address *b)
{
    return a->word[3] == b->word[3] && a->word[2] == b->word[2] && a->word[1] == b->word[1] && a->word[0] == b->word[0];
}

/* Returns the reason to drop, or 0. */
static __always_inline __u32 malformed(const struct packet *p)
{
    if (p->malformed)
        return p->malformed;
    if (p->unparsed != TG_CLEAN)
        return 0;
    if ((p->proto == PROTO_TCP || p->proto == PROTO_UDP) && p->source_port == p->dest_port &&
        same_address(&p->source, &p->dest))
        return TG_LAND;
    if (p->proto != PROTO_TCP)
        return 0;
    if (!(p->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_PSH | TCP_ACK | TCP_URG)))
        return TG_TCP_NULL;
    if ((p->tcp_flags & TCP_SYN) && (p->tcp_flags & (TCP_FIN | TCP_RST)))
        return TG_TCP_SYN_FIN;
    if ((p->tcp_flags & (TCP_FIN | TCP_PSH | TCP_URG)) == (TCP_FIN | TCP_PSH | TCP_URG))
        return TG_TCP_XMAS;
    return 0;
}

#endif
