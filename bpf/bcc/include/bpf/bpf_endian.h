/* Network order for a little-endian node, where BCC is used; see linux/kconfig.h. */
#ifndef TG_BCC_ENDIAN_H
#define TG_BCC_ENDIAN_H

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "little-endian");

#define bpf_ntohs(x) __builtin_bswap16(x)
#define bpf_htons(x) __builtin_bswap16(x)
#define bpf_ntohl(x) __builtin_bswap32(x)
#define bpf_htonl(x) __builtin_bswap32(x)

#endif
