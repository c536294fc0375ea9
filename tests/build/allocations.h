// Counts calls of the C allocator, which operator new goes to as well. Not under sanitizers, whose
// allocator this would replace, nor with other C libraries than glibc; there the count stays 0.
#pragma once

#include <atomic>
#include <cstdlib>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define DDI_SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define DDI_SANITIZED
#endif

namespace {
std::atomic<long> allocations{0};
}  // namespace

#if defined(__GLIBC__) && !defined(DDI_SANITIZED)
constexpr bool kCountsAllocations = true;

extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* memory, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

void* malloc(size_t size) {
  ++allocations;
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  ++allocations;
  return __libc_calloc(count, size);
}
void* realloc(void* memory, size_t size) {
  ++allocations;
  return __libc_realloc(memory, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  ++allocations;
  return __libc_memalign(alignment, size);
}
}
#else
constexpr bool kCountsAllocations = false;
#endif
