/* BCC sizes ring buffers in pages; see linux/kconfig.h. */
#define PAGE_SIZE 4096
