// y = act(scale * x + shift + add) over pixels of contiguous channels: activations by themselves,
// residuals, the scales of squeeze-and-excitation, BatchNorm before an activation. One pass, so it
// takes the time that reading and writing memory takes.
#pragma once

#include "base/parallel.h"
#include "micro/micro_elementwise.h"

namespace ddi {

// Strides are in elements, from sample to sample and from pixel to pixel; x, add and y may be parts
// of wider pixels. What is nullptr is left out.
template <class T>
struct PixelActivation {
  int64_t samples, pixels, channels;
  const T* x;
  int64_t x_sample_stride, x_stride;
  const float* scale;           // [channels], or [samples][channels] for one a sample
  int64_t scale_sample_stride;  // 0, or from sample to sample
  const float* shift;           // [channels]
  const T* add;
  int64_t add_sample_stride, add_stride;
  // Keeps NaN, like torch. SiLU of minus infinity is 0.
  Activation activation;
  T* y;  // may be x or add, of the same strides
  int64_t y_sample_stride, y_stride;
};

// For float and bf16. The result does not depend on `threads`.
template <class T>
void activate_pixels(const PixelActivation<T>& args, int64_t threads,
                     const ParallelFor& parallel_for);

}  // namespace ddi
