// Packs convolution weights into the panels that the micro-kernels read: panels of kLanes output
// channels, [ceil(co / kLanes)][kh][kw][ceil(ci / kPack)][kLanes][kPack] with the kPack of the type
// (1 for floats, 2 for bf16, 4 for int8), padded with zeros. fp16 becomes float. The layout is the
// same for every instruction set, so a packed weight may be stored.
#pragma once

#include "micro.h"
#include "parallel.h"

namespace ddi {

template <class T>
struct PrepackConv2d {
  int64_t co, ci, kh, kw;
  const T* weight;
  int64_t stride[4];  // of co, ci, kh, kw, in elements
};

// Weights that the packed form has room for.
template <class T = float>
int64_t prepack_conv2d_numel(int64_t co, int64_t ci, int64_t kh, int64_t kw) {
  constexpr int64_t kPack = Types<T>::kPack;
  return (co + kLanes - 1) / kLanes * kLanes * kh * kw * ((ci + kPack - 1) / kPack * kPack);
}

template <class T>
void prepack_conv2d(const PrepackConv2d<T>& args, const ParallelFor& parallel_for,
                    typename Types<T>::Cell* packed);

}  // namespace ddi
