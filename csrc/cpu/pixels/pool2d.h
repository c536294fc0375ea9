// Maxima or means over the windows of an image, [h][w][channels]: max and average pooling, with the
// padding and the rounding of torch. Lanes are channels, and neighbouring windows of the same size
// are one call of a micro-kernel.
#pragma once

#include "base/parallel.h"
#include "micro/micro_elementwise.h"

namespace ddi {

// Strides are in elements, from sample to sample and from pixel to pixel; x and y may be parts of
// wider pixels, whose rows follow each other without a gap.
template <class T>
struct Pool2d {
  int64_t n, h, w, channels;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
  int64_t out_h, out_w;    // by rounding down or up (ceil_mode), as the caller likes
  bool average;            // else maxima, which are NaN if anything in their window is
  bool count_include_pad;  // a mean is over the padding too, which is 0, but not beyond it
  const T* x;
  int64_t x_sample_stride, x_stride;
  T* y;
  int64_t y_sample_stride, y_stride;
};

// For float and bf16. A window with nothing in it has the mean 0 and the maximum -infinity. The
// result does not depend on `threads`.
template <class T>
void pool2d(const Pool2d<T>& args, int64_t threads, const ParallelFor& parallel_for);

}  // namespace ddi
