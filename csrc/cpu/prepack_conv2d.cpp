// Packing reads the weight with any strides and writes each panel front to back; panels are
// independent, so they are shared among the threads.
#include "prepack_conv2d.h"

#include <type_traits>

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

// G g G^T of one pair of channels, in double precision: [(m + 2)^2].
template <int M>
void transform_kernel(const double g[3][3], const double (&points)[M + 2][3], float* dst) {
  for (int i = 0; i < M + 2; ++i) {
    double row[3] = {};  // of G g
    for (int y = 0; y < 3; ++y) {
      for (int x = 0; x < 3; ++x) row[x] += points[i][y] * g[y][x];
    }
    for (int j = 0; j < M + 2; ++j) {
      double v = 0;
      for (int x = 0; x < 3; ++x) v += row[x] * points[j][x];
      dst[i * (M + 2) + j] = static_cast<float>(v);
    }
  }
}

// One panel of weights transformed for F(m x m, 3 x 3), position by position.
template <int M, class T>
void pack_winograd(const PrepackConv2d<T>& args, const double (&points)[M + 2][3], int64_t panel,
                   float* dst) {
  constexpr int64_t kPositions = winograd_positions(M);
  const int64_t columns = std::min<int64_t>(args.co - panel * kLanes, kLanes);
  std::fill_n(dst, kPositions * args.ci * kLanes, 0.0f);
  for (int64_t l = 0; l < columns; ++l) {
    for (int64_t c = 0; c < args.ci; ++c) {
      const T* src = args.weight + (panel * kLanes + l) * args.stride[0] + c * args.stride[1];
      double g[3][3];
      for (int i = 0; i < 9; ++i) {
        g[i / 3][i % 3] = to_float(src[i / 3 * args.stride[2] + i % 3 * args.stride[3]]);
      }
      float kernel[kPositions];
      transform_kernel<M>(g, points, kernel);
      for (int64_t p = 0; p < kPositions; ++p) dst[(p * args.ci + c) * kLanes + l] = kernel[p];
    }
  }
}

template <int M, class T>
float* pack_winograd(const PrepackConv2d<T>& args, const double (&points)[M + 2][3],
                     const ParallelFor& parallel_for, float* dst) {
  if (!has_winograd(M, args.co, args.ci)) return dst;
  const int64_t panels = ceil_div(args.co, kLanes);
  const int64_t numel = winograd_positions(M) * args.ci * kLanes;
  parallel_for(panels, [&](int64_t p) { pack_winograd<M>(args, points, p, dst + p * numel); });
  return dst + panels * numel;
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
  if constexpr (std::is_same<typename Types<T>::Cell, float>::value) {
    if (!args.winograd) return;
    float* next = packed + panels * panel_cells;
    next = pack_winograd<4>(args, kWinogradG4, parallel_for, next);
    pack_winograd<2>(args, kWinogradG2, parallel_for, next);
  }
}

#define DDI_INSTANTIATE(T) \
  template void prepack_conv2d<T>(const PrepackConv2d<T>&, const ParallelFor&, Types<T>::Cell*);

DDI_INSTANTIATE(float)
DDI_INSTANTIATE(double)
DDI_INSTANTIATE(half)
DDI_INSTANTIATE(bf16)
DDI_INSTANTIATE(int8_t)

}  // namespace ddi
