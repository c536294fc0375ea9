// A pixel is one memcpy or conversion; so are all pixels that a task has of a sample where nothing
// lies between them.
#include "copy_pixels.h"

#include <cstring>
#include <type_traits>

#include "base/split_rows.h"
#include "micro/micro_elementwise.h"

namespace ddi {
namespace {

template <class From, class To>
void copy_row(const From* src, int64_t count, To* dst) {
  if constexpr (std::is_same<From, To>::value) {
    std::memcpy(dst, src, static_cast<size_t>(count) * sizeof(To));
  } else if constexpr (std::is_same<From, float>::value) {
    elementwise_micro<To>().from_float(src, count, dst);
  } else {
    elementwise_micro<From>().to_float(src, count, dst);
  }
}

}  // namespace

template <class From, class To>
void copy_pixels(const CopyPixels<From, To>& a, int64_t threads, const ParallelFor& parallel_for) {
  const bool dense = a.x_stride == a.channels && a.y_stride == a.channels;
  split_pixels(a.samples, a.pixels, a.channels, threads, parallel_for,
               [&](int64_t sample, int64_t begin, int64_t end) {
                 const From* x = a.x + sample * a.x_sample_stride + begin * a.x_stride;
                 To* y = a.y + sample * a.y_sample_stride + begin * a.y_stride;
                 if (dense) return copy_row(x, (end - begin) * a.channels, y);
                 for (int64_t i = begin; i < end; ++i, x += a.x_stride, y += a.y_stride) {
                   copy_row(x, a.channels, y);
                 }
               });
}

#define DDI_INSTANTIATE(From, To) \
  template void copy_pixels<From, To>(const CopyPixels<From, To>&, int64_t, const ParallelFor&);

DDI_INSTANTIATE(float, float)
DDI_INSTANTIATE(bf16, bf16)
DDI_INSTANTIATE(float, bf16)
DDI_INSTANTIATE(bf16, float)

}  // namespace ddi
