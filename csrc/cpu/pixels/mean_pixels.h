// The means of a batch's channels over their pixels: global average pooling.
#pragma once

#include "base/parallel.h"
#include "micro/micro.h"

namespace ddi {

// Strides are in elements, from sample to sample and from pixel to pixel, whose channels are
// contiguous; x may be a part of wider pixels.
template <class T>
struct MeanPixels {
  int64_t samples, pixels, channels;
  const T* x;
  int64_t x_sample_stride, x_stride;
  typename Types<T>::Acc* mean;  // [samples][channels]
};

// For float and bf16. The result does not depend on `threads`.
template <class T>
void mean_pixels(const MeanPixels<T>& args, int64_t threads, const ParallelFor& parallel_for);

}  // namespace ddi
