// A sample is one call of the function that also pools the outputs of blocks.
#include "mean_pixels.h"

#include "base/split_rows.h"
#include "pool_sample.h"

namespace ddi {

template <class T>
void mean_pixels(const MeanPixels<T>& a, int64_t threads, const ParallelFor& parallel_for) {
  split_rows(a.samples, a.pixels * a.channels, threads, parallel_for,
             [&](int64_t begin, int64_t end) {
               for (int64_t n = begin; n < end; ++n) {
                 pool_sample(a.x + n * a.x_sample_stride, true, a.x_stride, a.channels, a.pixels,
                             a.mean + n * a.channels);
               }
             });
}

template void mean_pixels<float>(const MeanPixels<float>&, int64_t, const ParallelFor&);
template void mean_pixels<bf16>(const MeanPixels<bf16>&, int64_t, const ParallelFor&);

}  // namespace ddi
