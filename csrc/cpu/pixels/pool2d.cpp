// Rows of outputs are shared among threads. In each, runs of windows with as many columns inside
// the image are found first: all but a few at the sides.
#include "pool2d.h"

#include "base/split_rows.h"

namespace ddi {
namespace {

// A window along one dimension: what lies in the image, and what a mean divides by.
struct Window {
  int64_t begin, size, divisor;
};

Window window_of(int64_t i, int64_t stride, int64_t pad, int64_t kernel, int64_t size,
                 bool count_include_pad) {
  const int64_t first = i * stride - pad, last = std::min(first + kernel, size + pad);
  const int64_t begin = std::max<int64_t>(first, 0);
  const int64_t inside = std::max<int64_t>(std::min(last, size) - begin, 0);
  return {begin, inside, std::max<int64_t>(count_include_pad ? last - first : inside, 1)};
}

template <class T>
void pool_row(const Pool2d<T>& a, int64_t sample, int64_t y) {
  const auto pool =
      a.average ? elementwise_micro<T>().average_pool : elementwise_micro<T>().max_pool;
  const Window down = window_of(y, a.stride_h, a.pad_h, a.kernel_h, a.h, a.count_include_pad);
  const auto across = [&](int64_t x) {
    return window_of(x, a.stride_w, a.pad_w, a.kernel_w, a.w, a.count_include_pad);
  };
  PoolRow<T> row = {};
  row.channels = a.channels;
  row.rows = down.size;
  row.pixel_stride = a.x_stride;
  row.row_stride = a.w * a.x_stride;
  row.window_stride = a.stride_w * a.x_stride;
  row.y_stride = a.y_stride;
  Window window = across(0);
  for (int64_t x = 0, end; x < a.out_w; x = end) {
    const Window first = window;
    for (end = x + 1; end < a.out_w; ++end) {
      window = across(end);
      // Then both lie in the image, or neither does: they divide by the same.
      const int64_t begin = first.begin + (end - x) * a.stride_w;
      if (window.begin != begin || window.size != first.size) break;
    }
    row.outputs = end - x;
    row.columns = first.size;
    row.divisor = static_cast<float>(down.divisor * first.divisor);
    row.x = a.x + sample * a.x_sample_stride + (down.begin * a.w + first.begin) * a.x_stride;
    row.y = a.y + sample * a.y_sample_stride + (y * a.out_w + x) * a.y_stride;
    pool(row);
  }
}

}  // namespace

template <class T>
void pool2d(const Pool2d<T>& a, int64_t threads, const ParallelFor& parallel_for) {
  const int64_t elements = a.out_w * a.channels * a.kernel_h * a.kernel_w;
  split_rows(a.n * a.out_h, elements, threads, parallel_for, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) pool_row(a, i / a.out_h, i % a.out_h);
  });
}

template void pool2d<float>(const Pool2d<float>&, int64_t, const ParallelFor&);
template void pool2d<bf16>(const Pool2d<bf16>&, int64_t, const ParallelFor&);

}  // namespace ddi
