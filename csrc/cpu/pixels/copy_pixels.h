// Copies pixels between buffers of other widths or types: into a concatenation, out of one, from
// float to bfloat16 and back.
#pragma once

#include "base/dtypes.h"
#include "base/parallel.h"

namespace ddi {

// Strides are in elements, from sample to sample and from pixel to pixel, whose channels are
// contiguous; x and y do not overlap.
template <class From, class To>
struct CopyPixels {
  int64_t samples, pixels, channels;
  const From* x;
  int64_t x_sample_stride, x_stride;
  To* y;
  int64_t y_sample_stride, y_stride;
};

// From float or bf16 to float or bf16, rounded to nearest even.
template <class From, class To>
void copy_pixels(const CopyPixels<From, To>& args, int64_t threads,
                 const ParallelFor& parallel_for);

}  // namespace ddi
