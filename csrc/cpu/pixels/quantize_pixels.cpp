// A pixel is one call of the micro-kernel; so are all pixels that a task has of a sample where
// nothing lies between them.
#include "quantize_pixels.h"

#include "base/split_rows.h"
#include "micro/micro.h"

namespace ddi {

void quantize_pixels(const QuantizePixels& a, int64_t threads, const ParallelFor& parallel_for) {
  const Micro<int8_t>& kernels = micro<int8_t>();
  split_pixels(a.samples, a.pixels, a.channels, threads, parallel_for,
               [&](int64_t sample, int64_t begin, int64_t end) {
                 if (a.keep != nullptr && a.keep[sample] == 0) return;
                 const float* x = a.x + sample * a.x_sample_stride + begin * a.x_stride;
                 int8_t* y = a.y + (sample * a.pixels + begin) * a.channels;
                 if (a.x_stride == a.channels) {
                   return kernels.quantize(x, (end - begin) * a.channels, a.scale, y);
                 }
                 for (int64_t i = begin; i < end; ++i, x += a.x_stride, y += a.channels) {
                   kernels.quantize(x, a.channels, a.scale, y);
                 }
               });
}

}  // namespace ddi
