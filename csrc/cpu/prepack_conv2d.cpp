// Packing reads the weight with any strides and writes each panel front to back; panels are
// independent, so they are shared among the threads.
#include "prepack_conv2d.h"

#include "cells.h"

namespace ddi {
namespace {

// Input channel `first` and those that share its cell, of one output channel at one tap.
template <class T>
typename Types<T>::Cell weight_cell(const PrepackConv2d<T>& args, const T* src, int64_t first) {
  if constexpr (Types<T>::kPack == 1) {
    return to_float(src[first * args.stride[1]]);
  } else {
    typename Types<T>::Cell cell = 0;
    for (int64_t j = 0; j < std::min<int64_t>(args.ci - first, Types<T>::kPack); ++j) {
      cell |= channel_bits(src[(first + j) * args.stride[1]]) << (32 / Types<T>::kPack * j);
    }
    return cell;
  }
}

template <class T>
void pack_panel(const PrepackConv2d<T>& args, int64_t group, int64_t panel,
                typename Types<T>::Cell* dst) {
  const int64_t group_co = args.co / args.groups, first = group * group_co + panel * kLanes;
  const int64_t columns = std::min<int64_t>(group_co - panel * kLanes, kLanes);
  for (int64_t y = 0; y < args.kh; ++y) {
    for (int64_t x = 0; x < args.kw; ++x) {
      const T* src = args.weight + first * args.stride[0] + y * args.stride[2] + x * args.stride[3];
      for (int64_t i = 0; i < args.ci; i += Types<T>::kPack, dst += kLanes) {
        for (int64_t l = 0; l < columns; ++l) {
          dst[l] = weight_cell(args, src + l * args.stride[0], i);
        }
        std::fill(dst + columns, dst + kLanes, typename Types<T>::Cell(0));
      }
    }
  }
}

template <class T>
void pack_tap(const PrepackConv2d<T>& args, int64_t tap, T* dst) {
  const T* src = args.weight + tap / args.kw * args.stride[2] + tap % args.kw * args.stride[3];
  for (int64_t c = 0; c < round_up(args.co, kLanes); ++c) {
    dst[c] = c < args.co ? src[c * args.stride[0]] : T(0);
  }
}

}  // namespace

template <class T>
void prepack_conv2d(const PrepackConv2d<T>& args, const ParallelFor& parallel_for,
                    typename Types<T>::Cell* packed) {
  if constexpr (kHasDepthwise<T>) {
    if (is_depthwise(args.ci * args.groups, args.co, args.groups)) {
      const int64_t tap_numel = round_up(args.co, kLanes);
      parallel_for(args.kh * args.kw,
                   [&](int64_t tap) { pack_tap(args, tap, packed + tap * tap_numel); });
      return;
    }
  }
  const int64_t panels = ceil_div(args.co / args.groups, kLanes);
  const int64_t panel_cells =
      prepack_conv2d_numel<T>(1, args.ci, args.kh, args.kw) / Types<T>::kPack;
  parallel_for(args.groups * panels, [&](int64_t p) {
    pack_panel(args, p / panels, p % panels, packed + p * panel_cells);
  });
}

#define DDI_INSTANTIATE(T) \
  template void prepack_conv2d<T>(const PrepackConv2d<T>&, const ParallelFor&, Types<T>::Cell*);

DDI_INSTANTIATE(float)
DDI_INSTANTIATE(double)
DDI_INSTANTIATE(half)
DDI_INSTANTIATE(bf16)
DDI_INSTANTIATE(int8_t)

}  // namespace ddi
