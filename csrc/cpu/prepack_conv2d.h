// Packs convolution weights into the panels that the micro-kernels read: panels of kLanes output
// channels, [ceil(co / kLanes)][kh][kw][ci][kLanes], the last panel padded with zeros. The layout
// is the same for every instruction set, so a packed weight may be stored.
#pragma once

#include "parallel.h"

namespace ddi {

template <class T>
struct PrepackConv2d {
  int64_t co, ci, kh, kw;
  const T* weight;
  int64_t stride[4];  // of co, ci, kh, kw, in elements
};

// Elements of the packed weight.
int64_t prepack_conv2d_numel(int64_t co, int64_t ci, int64_t kh, int64_t kw);

template <class T>
void prepack_conv2d(const PrepackConv2d<T>& args, const ParallelFor& parallel_for, T* packed);

}  // namespace ddi
