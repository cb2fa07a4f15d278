/* Blocklist: lookup in one compiled snapshot of all reputation feeds.
 *
 * A snapshot is an array map of 4096-byte pages, built and written by user space and never changed once it is
 * published: it is replaced whole, by one update of the map-in-map slot that holds it. The caller takes the inner
 * map pointer once per packet, so that no packet is judged by two images. Pages are the unit because user space
 * writes them through mmap, and because a constant value size lets the verifier turn each lookup into a shift and
 * an add. All inner maps of one outer map have the same number of pages (else those lookups become calls), so the
 * reserve (TG_SNAPSHOT_PAGES, TG_SNAPSHOT6_PAGES in shared.h) is fixed; what lies where inside it is a matter of
 * each image.
 *
 * Both lookups return 0 for an address that is not listed, else 1 + class. The class (0..63) says which feed listed
 * it, for counters only: 63 where several feeds share one block of 256 addresses. An image from a bug or an attacker
 * can give a wrong answer but never an access outside the map. The compiler is actors/epidermis/blocklist.py; the
 * constants here are mirrored there, and a test compares them.
 *
 * IPv4 is exact. IPv6 compares a seeded 64-bit fingerprint of (prefix length, masked address): an address that is
 * not listed is taken for a listed one with a probability of 2^-61 for each prefix length in the image.
 */
#ifndef TG_BLOCKLIST_H
#define TG_BLOCKLIST_H

#include <linux/bpf.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define BL_PAGE_BYTES 4096
#define BL_CLASS_MIXED 63

/* IPv4. bits: one bit per /24 in which anything is listed, 2 MiB, all that clean traffic ever touches.
 * rank: for each 64-bit word of bits, how many are set before it. entries: one per set bit, in order.
 * Blocks (32 bytes, one bit per address of a /24) follow the entries. */
#define BL4_RANK_PAGE 512
#define BL4_ENTRY_PAGE 768

/* Rank word whose 64 bits are whole /24s of one class (any prefix up to /18): no entries, class in the low bits. */
#define BL4_UNIFORM 0x80000000u

/* Entry: kind in the top two bits. A whole /24 and a single host carry the class in bits 8..13 and, for the host,
 * its last byte; a block carries its index, counted from the start of the image, and the class in bits 24..29. */
#define BL4_WHOLE 0u
#define BL4_HOST 1u
#define BL4_BLOCK 2u

/* IPv6. One page of parameters, up to 2 MiB of hashed bits, then 64-byte buckets and, behind them, the
 * stash: buckets of the same shape for what found its own bucket full. */
#define BL6_BITS_PAGE 1
#define BL6_BUCKET_PAGE 513
#define BL6_LENGTHS 64
#define BL6_SLOTS 7

union bl_page {
	__u64 q[BL_PAGE_BYTES / 8];
	__u32 w[BL_PAGE_BYTES / 4];
};

struct bl6_length {
	__u64 mask_hi, mask_lo;
	__u64 tag; /* random: keeps the same bits under another length apart */
	__u64 unused;
};

/* Multipliers are random and odd, drawn anew for each image, so that nobody can aim at a bucket. */
struct bl6_head {
	__u64 index_mul[2];
	__u64 print_mul[2];
	__u32 lengths;
	__u32 bit_shift; /* 64 minus the logarithm of the number of bits; at least 40 */
	__u32 buckets;
	__u32 stash;
	__u64 unused[2];
	struct bl6_length length[BL6_LENGTHS];
};

_Static_assert(sizeof(struct bl6_head) <= BL_PAGE_BYTES, "the parameters fit one page");

/* classes: a byte for each slot; the top byte is 1 where an entry of this bucket had to go to the stash. */
struct bl6_bucket {
	__u64 print[BL6_SLOTS];
	__u64 classes;
};

static __always_inline union bl_page *bl_page(void *inner, __u32 page)
{
	return bpf_map_lookup_elem(inner, &page);
}

/* BPF has no instruction for it. Source: Hacker's Delight, section 5-1. */
static __always_inline __u32 bl_popcount(__u64 x)
{
	x -= (x >> 1) & 0x5555555555555555ULL;
	x = (x & 0x3333333333333333ULL) + ((x >> 2) & 0x3333333333333333ULL);
	x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return (x * 0x0101010101010101ULL) >> 56;
}

/* addr: source address in host byte order. */
static __always_inline __u32 blocklist4(void *inner, __u32 addr)
{
	union bl_page *page;
	__u32 bit = (addr >> 8) & 63;
	__u32 rank, slot, entry, block;
	__u64 word;

	page = bl_page(inner, addr >> 23);
	if (!page)
		return 0;
	word = page->q[(addr >> 14) & 511];
	if (!((word >> bit) & 1))
		return 0;

	page = bl_page(inner, BL4_RANK_PAGE + (addr >> 24));
	if (!page)
		return 0;
	rank = page->w[(addr >> 14) & 1023];
	if (rank & BL4_UNIFORM)
		return 1 + (rank & 63);

	slot = rank + bl_popcount(word & ((1ULL << bit) - 1));
	page = bl_page(inner, BL4_ENTRY_PAGE + (slot >> 10));
	if (!page)
		return 0;
	entry = page->w[slot & 1023];
	if (entry >> 30 == BL4_WHOLE)
		return 1 + ((entry >> 8) & 63);
	if (entry >> 30 == BL4_HOST)
		return ((entry ^ addr) & 255) ? 0 : 1 + ((entry >> 8) & 63);

	block = entry & 0xffffff;
	page = bl_page(inner, block >> 7);
	if (!page)
		return 0;
	word = page->q[((block & 127) << 2) | ((addr >> 6) & 3)];
	return ((word >> (addr & 63)) & 1) ? 1 + ((entry >> 24) & 63) : 0;
}

/* Fold 128 bits to 64. Good in the high bits; the low ones are weak. */
static __always_inline __u64 bl6_hash(__u64 hi, __u64 lo, __u64 tag, const __u64 *mul)
{
	__u64 x = (hi ^ tag) * mul[0];

	x ^= x >> 32;
	return (x ^ lo) * mul[1];
}

/* 0: not in this bucket, else 1 + class. overflowed: whether the stash may hold it. */
static __always_inline __u32 bl6_bucket(void *inner, __u64 index, __u64 print, int *overflowed)
{
	union bl_page *page = bl_page(inner, BL6_BUCKET_PAGE + (index >> 6));
	struct bl6_bucket *bucket;
	__u32 shift;

	*overflowed = 0;
	if (!page)
		return 0;
	bucket = &((struct bl6_bucket *)page)[index & 63];
	if (bucket->print[0] == print)
		shift = 0;
	else if (bucket->print[1] == print)
		shift = 8;
	else if (bucket->print[2] == print)
		shift = 16;
	else if (bucket->print[3] == print)
		shift = 24;
	else if (bucket->print[4] == print)
		shift = 32;
	else if (bucket->print[5] == print)
		shift = 40;
	else if (bucket->print[6] == print)
		shift = 48;
	else {
		*overflowed = bucket->classes >> 56;
		return 0;
	}
	return 1 + ((bucket->classes >> shift) & 63);
}

static __always_inline __u32 blocklist6(void *inner, const struct in6_addr *addr)
{
	const __u32 *word = addr->in6_u.u6_addr32;
	__u64 hi = (__u64)bpf_ntohl(word[0]) << 32 | bpf_ntohl(word[1]);
	__u64 lo = (__u64)bpf_ntohl(word[2]) << 32 | bpf_ntohl(word[3]);
	struct bl6_head *head = (struct bl6_head *)bl_page(inner, 0);

	if (!head)
		return 0;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < BL6_LENGTHS; i++) {
		const struct bl6_length *length = &head->length[i];
		__u64 net_hi, net_lo, index, print, bit;
		union bl_page *page;
		int overflowed;
		__u32 found;

		if (i >= head->lengths)
			break;
		net_hi = hi & length->mask_hi;
		net_lo = lo & length->mask_lo;
		index = bl6_hash(net_hi, net_lo, length->tag, head->index_mul);
		bit = index >> (head->bit_shift & 63);
		page = bl_page(inner, BL6_BITS_PAGE + (bit >> 15));
		if (!page || !((page->q[(bit >> 6) & 511] >> (bit & 63)) & 1))
			continue;

		/* The bucket comes from the first hash and the fingerprint from a second one, so that being in the
		 * same bucket tells nothing about the fingerprint. */
		print = bl6_hash(net_hi, net_lo, length->tag, head->print_mul);
		print ^= print >> 32;
		index = (__u32)(index ^ (index >> 32));
		found = bl6_bucket(inner, (index * head->buckets) >> 32, print, &overflowed);
		if (!found && overflowed)
			found = bl6_bucket(inner, head->buckets + (((__u64)(__u32)print * head->stash) >> 32), print, &overflowed);
		if (found)
			return found;
	}
	return 0;
}

#endif
