// A row is one memcpy, whatever its element type and inner layout; rows are shared among threads.
#include "gather_samples.h"

#include <cstring>

namespace ddi {

void gather_samples(const void* x, int64_t x_stride_bytes, int64_t row_bytes, const int64_t* index,
                    int64_t count, const ParallelFor& parallel_for, void* rows) {
  const char* src = static_cast<const char*>(x);
  char* dst = static_cast<char*>(rows);
  parallel_for(count, [=](int64_t k) {
    std::memcpy(dst + k * row_bytes, src + index[k] * x_stride_bytes, row_bytes);
  });
}

}  // namespace ddi
