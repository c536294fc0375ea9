// Packing reads the weight with any strides and writes each panel front to back; panels are
// independent, so they are shared among the threads.
#include "prepack_conv2d.h"

#include "arena.h"
#include "depthwise_conv2d.h"
#include "micro.h"

namespace ddi {
namespace {

template <class T>
void pack_panel(const PrepackConv2d<T>& args, int64_t group, int64_t panel, T* dst) {
  const int64_t group_co = args.co / args.groups, left = group_co - panel * kLanes;
  const int64_t first = group * group_co + panel * kLanes;
  const int64_t columns = left < kLanes ? left : kLanes;
  for (int64_t y = 0; y < args.kh; ++y) {
    for (int64_t x = 0; x < args.kw; ++x) {
      for (int64_t i = 0; i < args.ci; ++i, dst += kLanes) {
        const T* src = args.weight + first * args.stride[0] + i * args.stride[1] +
                       y * args.stride[2] + x * args.stride[3];
        for (int64_t l = 0; l < kLanes; ++l) dst[l] = l < columns ? src[l * args.stride[0]] : T(0);
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

int64_t prepack_conv2d_numel(int64_t co, int64_t ci, int64_t kh, int64_t kw, int64_t groups) {
  if (is_depthwise(ci * groups, co, groups)) return kh * kw * round_up(co, kLanes);
  return groups * round_up(co / groups, kLanes) * kh * kw * ci;
}

template <class T>
void prepack_conv2d(const PrepackConv2d<T>& args, const ParallelFor& parallel_for, T* packed) {
  if (is_depthwise(args.ci * args.groups, args.co, args.groups)) {
    const int64_t tap_numel = round_up(args.co, kLanes);
    parallel_for(args.kh * args.kw,
                 [&](int64_t tap) { pack_tap(args, tap, packed + tap * tap_numel); });
    return;
  }
  const int64_t panels = ceil_div(args.co / args.groups, kLanes);
  const int64_t panel_numel = args.kh * args.kw * args.ci * kLanes;
  parallel_for(args.groups * panels, [&](int64_t p) {
    pack_panel(args, p / panels, p % panels, packed + p * panel_numel);
  });
}

template void prepack_conv2d<float>(const PrepackConv2d<float>&, const ParallelFor&, float*);
template void prepack_conv2d<double>(const PrepackConv2d<double>&, const ParallelFor&, double*);

}  // namespace ddi
