// The index is inverted first, so that every sample is written once, by one thread, from wherever
// its final value comes: no copy is overwritten and repeated indices have one answer.
#include "scatter_samples.h"

#include <cstring>

namespace ddi {

void scatter_samples(const void* x, int64_t x_stride_bytes, const void* rows, int64_t row_bytes,
                     const int64_t* index, int64_t count, int64_t samples,
                     const ParallelFor& parallel_for, int64_t* source, void* y,
                     int64_t y_stride_bytes) {
  for (int64_t n = 0; n < samples; ++n) source[n] = -1;
  for (int64_t k = 0; k < count; ++k) source[index[k]] = k;
  const char* kept = static_cast<const char*>(x);
  const char* fresh = static_cast<const char*>(rows);
  char* dst = static_cast<char*>(y);
  parallel_for(samples, [=](int64_t n) {
    if (source[n] >= 0) {
      std::memcpy(dst + n * y_stride_bytes, fresh + source[n] * row_bytes, row_bytes);
    } else if (kept != nullptr) {
      std::memcpy(dst + n * y_stride_bytes, kept + n * x_stride_bytes, row_bytes);
    }
  });
}

}  // namespace ddi
