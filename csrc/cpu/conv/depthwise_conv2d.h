// gated_conv2d where every channel is a convolution group of its own. A channel counts where it is
// open on both sides; weights come as prepack_conv2d lays them out for this case,
// [kh][kw][channels].
#pragma once

#include <type_traits>

#include "gated_conv2d.h"

namespace ddi {

// Whether the type has this kernel; the others take such shapes as any grouped convolution.
template <class T>
constexpr bool kHasDepthwise = std::is_floating_point<T>::value;

inline bool is_depthwise(int64_t ci, int64_t co, int64_t groups) {
  return groups > 1 && groups == ci && groups == co;
}

// As for gated_conv2d, which calls these for such shapes.
template <class T>
int64_t depthwise_conv2d_workspace_bytes(const Conv2dShape& shape, int64_t threads);

template <class T>
void depthwise_conv2d(const GatedConv2d<T>& args, int64_t threads, const ParallelFor& parallel_for,
                      void* workspace);

}  // namespace ddi
