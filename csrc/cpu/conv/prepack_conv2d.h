// Packs convolution weights into the panels that the micro-kernels read: for every convolution
// group panels of kLanes output channels, [ceil(co / kLanes)][kh][kw][ceil(ci / kPack)][kLanes]
// [kPack] with the kPack of the type (1 for floats, 2 for bf16, 4 for int8), padded with zeros.
// fp16 becomes float. A depthwise convolution of float or double, whose groups are single channels,
// has [kh][kw][channels], padded to whole lanes. Behind the panels may follow the same weights in
// the transforms of the kernel (winograd.h), as far as has_winograd: [ceil(co / kLanes)][position]
// [column phase][ci][row phase][kLanes]. The layout is the same for every instruction set, so a
// packed weight may be stored.
#pragma once

#include "base/arena.h"
#include "base/parallel.h"
#include "depthwise_conv2d.h"
#include "micro/micro.h"
#include "micro/winograd.h"

namespace ddi {

template <class T>
struct PrepackConv2d {
  int64_t co, ci, kh, kw;  // of the weight: ci of one convolution group
  const T* weight;
  int64_t stride[4];  // of co, ci, kh, kw, in elements
  int64_t groups = 1;
  bool winograd = false;  // transformed weights too; only in float or half
};

// Weights that the packed form has room for.
template <class T = float>
int64_t prepack_conv2d_numel(int64_t co, int64_t ci, int64_t kh, int64_t kw, int64_t groups = 1) {
  constexpr int64_t kPack = Types<T>::kPack;
  if (kHasDepthwise<T> && is_depthwise(ci * groups, co, groups))
    return kh * kw * round_up(co, kLanes);
  return groups * round_up(co / groups, kLanes) * kh * kw * round_up(ci, kPack);
}

// Those of all its transformed weights.
inline int64_t winograd_numel(int64_t co, int64_t ci, int64_t kh, int64_t kw) {
  int64_t taps = 0;
  for (const int m : winograd_forms(kh, kw).m)
    taps += has_winograd(m, co, ci) ? winograd_taps(m) : 0;
  return round_up(co, kLanes) * taps * ci;
}

template <class T>
void prepack_conv2d(const PrepackConv2d<T>& args, const ParallelFor& parallel_for,
                    typename Types<T>::Cell* packed);

}  // namespace ddi
