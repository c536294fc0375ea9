// Packing reads the weight with any strides and writes each panel front to back; panels are
// independent, so they are shared among the threads.
#include "prepack_conv2d.h"

#include "micro.h"

namespace ddi {
namespace {

template <class T>
void pack_panel(const PrepackConv2d<T>& args, int64_t panel, T* dst) {
  const int64_t first = panel * kLanes;
  const int64_t columns = args.co - first < kLanes ? args.co - first : kLanes;
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

}  // namespace

int64_t prepack_conv2d_numel(int64_t co, int64_t ci, int64_t kh, int64_t kw) {
  return (co + kLanes - 1) / kLanes * kLanes * kh * kw * ci;
}

template <class T>
void prepack_conv2d(const PrepackConv2d<T>& args, const ParallelFor& parallel_for, T* packed) {
  const int64_t panels = (args.co + kLanes - 1) / kLanes;
  const int64_t panel_numel = args.kh * args.kw * args.ci * kLanes;
  parallel_for(panels, [&](int64_t p) { pack_panel(args, p, packed + p * panel_numel); });
}

template void prepack_conv2d<float>(const PrepackConv2d<float>&, const ParallelFor&, float*);
template void prepack_conv2d<double>(const PrepackConv2d<double>&, const ParallelFor&, double*);

}  // namespace ddi
