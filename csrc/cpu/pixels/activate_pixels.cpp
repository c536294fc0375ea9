// Rows are pixels; where nothing lies between them and nothing differs from channel to channel, a
// task takes all of its pixels of a sample as one row, which leaves no half-empty registers.
#include "activate_pixels.h"

#include "base/split_rows.h"

namespace ddi {
namespace {

// Pixels [begin, end) of a sample.
template <class T>
void activate_range(const PixelActivation<T>& a, int64_t sample, int64_t begin, int64_t end) {
  ActivationRow<T> row = {};
  row.pixels = end - begin;
  row.channels = a.channels;
  row.x = a.x + sample * a.x_sample_stride + begin * a.x_stride;
  row.x_stride = a.x_stride;
  if (a.scale != nullptr) row.scale = a.scale + sample * a.scale_sample_stride;
  row.shift = a.shift;
  if (a.add != nullptr) row.add = a.add + sample * a.add_sample_stride + begin * a.add_stride;
  row.add_stride = a.add_stride;
  row.y = a.y + sample * a.y_sample_stride + begin * a.y_stride;
  row.y_stride = a.y_stride;
  const bool dense = a.x_stride == a.channels && a.y_stride == a.channels &&
                     (a.add == nullptr || a.add_stride == a.channels);
  if (dense && a.scale == nullptr && a.shift == nullptr) {
    row.channels *= row.pixels;
    row.pixels = 1;
  }
  elementwise_micro<T>().activate[static_cast<int>(a.activation)](row);
}

}  // namespace

template <class T>
void activate_pixels(const PixelActivation<T>& a, int64_t threads,
                     const ParallelFor& parallel_for) {
  split_pixels(
      a.samples, a.pixels, a.channels, threads, parallel_for,
      [&](int64_t sample, int64_t begin, int64_t end) { activate_range(a, sample, begin, end); });
}

template void activate_pixels<float>(const PixelActivation<float>&, int64_t, const ParallelFor&);
template void activate_pixels<bf16>(const PixelActivation<bf16>&, int64_t, const ParallelFor&);

}  // namespace ddi
