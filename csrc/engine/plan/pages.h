// Memory for weights and images, aligned for the drivers' vectors and, where the system has them,
// in huge pages: a network reads all of its weights once for every image, and with small pages
// would spend a fifth of that on looking up where they are.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace ddi::engine {

struct FreePages {
  int64_t alignment = 0;
  void operator()(char* data) const;
};

using Pages = std::unique_ptr<char, FreePages>;

// At least one byte; throws std::bad_alloc.
Pages allocate_pages(int64_t bytes);

// Many pieces that live as long as the pool, side by side: pages are shared.
class PagePool {
 public:
  // Of these many bytes, uninitialised.
  char* take(int64_t bytes);

 private:
  std::vector<Pages> chunks_;
  int64_t left_ = 0;  // of the last chunk
  char* next_ = nullptr;
};

}  // namespace ddi::engine
