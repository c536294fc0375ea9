// Float pixels as int8 with one scale: what an int8 convolution reads.
#pragma once

#include <cstdint>

#include "base/parallel.h"

namespace ddi {

// Strides are in elements, from sample to sample and from pixel to pixel, whose channels are
// contiguous; x may be a part of wider pixels.
struct QuantizePixels {
  int64_t samples, pixels, channels;
  const float* x;
  int64_t x_sample_stride, x_stride;
  float scale;
  const uint8_t* keep;  // [samples] or nullptr; the others' x is not read, their y not written
  int8_t* y;            // [samples][pixels][channels]
};

// y = x / scale, rounded to nearest even and clamped; NaN becomes 0.
void quantize_pixels(const QuantizePixels& args, int64_t threads, const ParallelFor& parallel_for);

}  // namespace ddi
