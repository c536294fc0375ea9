// Packs convolution weights into the panels that the micro-kernels read: for every convolution
// group panels of kLanes output channels, [ceil(co / kLanes)][kh][kw][ci][kLanes], the last one
// padded with zeros; of a depthwise convolution, whose groups are single channels,
// [kh][kw][channels], padded to whole lanes. The layout is the same for every instruction set, so a
// packed weight may be stored.
#pragma once

#include "parallel.h"

namespace ddi {

template <class T>
struct PrepackConv2d {
  int64_t co, ci, kh, kw;  // of the weight: ci of one convolution group
  const T* weight;
  int64_t stride[4];  // of co, ci, kh, kw, in elements
  int64_t groups = 1;
};

// Elements of the packed weight.
int64_t prepack_conv2d_numel(int64_t co, int64_t ci, int64_t kh, int64_t kw, int64_t groups = 1);

template <class T>
void prepack_conv2d(const PrepackConv2d<T>& args, const ParallelFor& parallel_for, T* packed);

}  // namespace ddi
