/* What BCC wants to find of a kernel's source before it compiles anything.
 *
 * The reflex arc reads packets and its own maps and no structure of the kernel, so these few files stand in for the
 * headers of the running kernel: BCC then needs no linux-headers package, and never meets headers of another version.
 */
#ifndef TG_BCC_KCONFIG_H
#define TG_BCC_KCONFIG_H

#define CONFIG_BPF_SYSCALL 1

#endif
