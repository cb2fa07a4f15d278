/* An IPv6 address as the kernel spells it; see kconfig.h beside this file. */
#ifndef TG_BCC_IN6_H
#define TG_BCC_IN6_H

#include <linux/types.h>

struct in6_addr {
    union {
        __u8 u6_addr8[16];
        __u32 u6_addr32[4];
    } in6_u;
};

#endif
