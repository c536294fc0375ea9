/* The allocator of a program linked to glibc, counted, and failing once when asked to. The C++
 * library's operator new ends here too. tests/build/allocations.h only counts, and is C++. */
#ifndef COUNTED_MALLOC_H
#define COUNTED_MALLOC_H

#include <errno.h>
#include <stddef.h>

void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* memory, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

static long allocations = 0;
static long failing = -1; /* the number of the allocation that fails */

static int may_allocate(void) { return __sync_fetch_and_add(&allocations, 1) != failing; }

void* malloc(size_t size) { return may_allocate() ? __libc_malloc(size) : NULL; }
void* calloc(size_t count, size_t size) {
  return may_allocate() ? __libc_calloc(count, size) : NULL;
}
void* realloc(void* memory, size_t size) {
  return may_allocate() ? __libc_realloc(memory, size) : NULL;
}
void* memalign(size_t alignment, size_t size) {
  return may_allocate() ? __libc_memalign(alignment, size) : NULL;
}
void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void** memory, size_t alignment, size_t size) {
  *memory = memalign(alignment, size);
  return *memory == NULL ? ENOMEM : 0;
}

#endif
