#include "pages.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <new>

#include "base/arena.h"

namespace ddi::engine {
namespace {

constexpr int64_t kAlignment = 64, kHugePage = 2 << 20;

// What nothing touches of a chunk takes no memory. For tools that look for reads out of bounds
// every piece is a chunk.
#ifdef DDI_SEPARATE_BUFFERS
constexpr int64_t kChunk = kAlignment;
#else
constexpr int64_t kChunk = 4 * kHugePage;
#endif

}  // namespace

void FreePages::operator()(char* data) const {
  ::operator delete(data, std::align_val_t{static_cast<size_t>(alignment)});
}

Pages allocate_pages(int64_t bytes) {
  const int64_t alignment = bytes >= kHugePage ? kHugePage : kAlignment;
  const int64_t size = round_up(std::max<int64_t>(bytes, 1), alignment);
  char* data = static_cast<char*>(
      ::operator new(static_cast<size_t>(size), std::align_val_t{static_cast<size_t>(alignment)}));
#ifdef MADV_HUGEPAGE
  // Refused where the system has none, which is no error.
  if (alignment == kHugePage) madvise(data, static_cast<size_t>(size), MADV_HUGEPAGE);
#endif
  return {data, {alignment}};
}

char* PagePool::take(int64_t bytes) {
  const int64_t size = round_up(std::max<int64_t>(bytes, 1), kAlignment);
  if (size > left_) {
    const int64_t chunk = round_up(size, kChunk);
    chunks_.push_back(allocate_pages(chunk));
    next_ = chunks_.back().get();
    left_ = chunk;
  }
  char* piece = next_;
  next_ += size;
  left_ -= size;
  return piece;
}

}  // namespace ddi::engine
