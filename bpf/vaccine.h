/* Vaccines: a known payload is dropped whoever sends it, by protocol, destination port and fingerprint. */
#ifndef TG_VACCINE_H
#define TG_VACCINE_H

#include "bans.h"

/* FNV-1a (64 bit) over the first TG_FINGERPRINT_BYTES of the payload, padded with zeros, and then over the number of
 * bytes that were there. Source: draft-eastlake-fnv. bpf/maps.py has the same. */
static __always_inline __u64 fingerprint(const __u8 *bytes, __u32 length)
{
    __u64 hash = 0xcbf29ce484222325ULL;

#pragma unroll
    for (int i = 0; i < TG_FINGERPRINT_BYTES; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3ULL;
    return (hash ^ length) * 0x100000001b3ULL;
}

/* How many payload bytes to fingerprint: 0 where no vaccine could apply. */
static __always_inline __u32 fingerprint_bytes(const struct packet *p, const struct tg_knobs *k)
{
    if (!k->vaccines || p->unparsed != TG_CLEAN || p->malformed || p->frame_bytes <= p->payload_offset)
        return 0;
    struct tg_page *filter = vaccine_filter_page(p->dest_port >> PAGE_SHIFT);
    if (!filter || !filter->byte[p->dest_port & PAGE_MASK])
        return 0;
    __u32 have = p->frame_bytes - p->payload_offset;
    if (have > p->payload)
        have = p->payload;
    return have < TG_FINGERPRINT_BYTES ? have : TG_FINGERPRINT_BYTES;
}

/* Returns the reason to drop, or 0. */
static __always_inline __u32 vaccinated(struct reflex *r)
{
    struct tg_vaccine_key key = {
        .fingerprint = r->fingerprint, .dest_port = r->packet.dest_port, .proto = r->packet.proto
    };
    struct tg_vaccine *vaccine;

    if (!r->fingerprint)
        return 0;
    vaccine = vaccine_find(&key);
    if (!vaccine || is_over(vaccine->until_ns, r->now_ns))
        return 0;
    if (!r->proving)
        vaccine->packets++;
    r->detail = vaccine->id;
    return TG_VACCINE;
}

#endif
