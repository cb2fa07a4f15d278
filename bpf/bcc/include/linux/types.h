/* The kernel's names for integers; see kconfig.h beside this file. */
#ifndef TG_BCC_TYPES_H
#define TG_BCC_TYPES_H

typedef unsigned char u8, __u8;
typedef unsigned short u16, __u16, __be16, __sum16;
typedef unsigned int u32, __u32, __be32, __wsum;
typedef unsigned long long u64, __u64, __be64, __aligned_u64;
typedef signed char s8, __s8;
typedef short s16, __s16;
typedef int s32, __s32;
typedef long long s64, __s64;
typedef unsigned long size_t, uintptr_t;
typedef _Bool bool;

#define NULL ((void *)0)
#define __always_inline inline __attribute__((always_inline))

#endif
