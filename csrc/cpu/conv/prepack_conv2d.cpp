// Packing reads the weight with any strides and writes each panel front to back; panels are
// independent, so they are shared among the threads.
#include "prepack_conv2d.h"

#include <type_traits>

#include "micro/cells.h"

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

// A transform F(m x m, kTaps x kTaps), and its points G.
template <int kM, int kTaps>
struct Transform {
  static constexpr int kSide = winograd_side(kM), kPhases = winograd_phases(kM) > 1 ? 2 : 1;
  const double (&points)[kSide][kTaps];
};

// G g G^T of one phase of a pair of channels, in double precision: [position].
template <int kM, int kTaps>
void transform_kernel(const Transform<kM, kTaps>& t, const double (&g)[kTaps][kTaps], float* dst) {
  constexpr int kSide = Transform<kM, kTaps>::kSide;
  for (int i = 0; i < kSide; ++i) {
    double row[kTaps] = {};  // of G g
    for (int y = 0; y < kTaps; ++y) {
      for (int x = 0; x < kTaps; ++x) row[x] += t.points[i][y] * g[y][x];
    }
    for (int j = 0; j < kSide; ++j) {
      double v = 0;
      for (int x = 0; x < kTaps; ++x) v += row[x] * t.points[j][x];
      dst[i * kSide + j] = static_cast<float>(v);
    }
  }
}

// One panel of transformed weights, position by position.
template <int kM, int kTaps, class T>
void pack_winograd(const PrepackConv2d<T>& args, const Transform<kM, kTaps>& t, int64_t panel,
                   float* dst) {
  constexpr int64_t kPositions = winograd_positions(kM), kPhases = Transform<kM, kTaps>::kPhases;
  const int64_t columns = std::min<int64_t>(args.co - panel * kLanes, kLanes);
  const int64_t rows = args.ci * kPhases * kPhases;  // of a position
  std::fill_n(dst, kPositions * rows * kLanes, 0.0f);
  for (int64_t i = 0; i < columns * rows; ++i) {
    const int64_t l = i / rows, row = i % rows, dy = row % kPhases, c = row / kPhases % args.ci;
    const int64_t dx = row / kPhases / args.ci;
    const T* src = args.weight + (panel * kLanes + l) * args.stride[0] + c * args.stride[1];
    double g[kTaps][kTaps] = {};
    for (int64_t y = dy, a = 0; y < args.kh; y += kPhases, ++a) {
      for (int64_t x = dx, b = 0; x < args.kw; x += kPhases, ++b) {
        g[a][b] = to_float(src[y * args.stride[2] + x * args.stride[3]]);
      }
    }
    float kernel[kPositions];
    transform_kernel(t, g, kernel);
    for (int64_t p = 0; p < kPositions; ++p) dst[(p * rows + row) * kLanes + l] = kernel[p];
  }
}

template <int kM, int kTaps, class T>
float* pack_winograd(const PrepackConv2d<T>& args, const Transform<kM, kTaps>& t,
                     const ParallelFor& parallel_for, float* dst) {
  if (!has_winograd(kM, args.co, args.ci)) return dst;
  const int64_t panels = ceil_div(args.co, kLanes);
  const int64_t numel = winograd_taps(kM) * args.ci * kLanes;
  parallel_for(panels, [&](int64_t p) { pack_winograd(args, t, p, dst + p * numel); });
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
    for (const int m : winograd_forms(args.kh, args.kw).m) {
      if (m == 4) next = pack_winograd(args, Transform<4, 3>{kWinogradG4}, parallel_for, next);
      if (m == 3) next = pack_winograd(args, Transform<3, 4>{kWinogradG3}, parallel_for, next);
      if (m == 2) next = pack_winograd(args, Transform<2, 3>{kWinogradG2}, parallel_for, next);
    }
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
