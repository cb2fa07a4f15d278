/* No program type that is used here depends on a version; see kconfig.h beside this file. */
#ifndef TG_BCC_VERSION_H
#define TG_BCC_VERSION_H

#define KERNEL_VERSION(major, minor, patch) (((major) << 16) + ((minor) << 8) + (patch))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 8, 0)

#endif
