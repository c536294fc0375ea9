// The depthwise micro-kernel for NEON: a quarter of the lanes at a time, tiles of up to 12 outputs
// (8 in the 16 registers of 32-bit ARM), each weight loaded once a tile and each input once for the
// taps of a run.
#include "base/isa.h"

#if defined(DDI_NEON)
#include <arm_neon.h>

#include "base/isa_region.h"
#include "micro/micro.h"
#include "micro/micro_depthwise.h"

DDI_REGION_NEON
#include "micro_neon_pixels.h"

namespace ddi {
namespace {

#if defined(__aarch64__)
constexpr int kMost = 12;
#else
constexpr int kMost = 8;
#endif

// All ones in the lanes whose bit is set.
DDI_INLINE uint32x4_t lanes_of(uint32_t bits) {
  const uint32_t bit[kQuarter] = {1, 2, 4, 8};
  return vtstq_u32(vdupq_n_u32(bits), vld1q_u32(bit));
}

DDI_INLINE float32x4_t keep(uint32x4_t lanes, float32x4_t v) {
  return vreinterpretq_f32_u32(vandq_u32(lanes, vreinterpretq_u32_f32(v)));
}

template <int P, bool kFull, int kRun>
void tile_of(const DepthwiseTile<float>& t, int64_t first, int column) {
  const int64_t n = t.lanes - column;
  const float* in = t.in + first * t.in_stride + column;
  float32x4_t acc[P];
  DDI_UNROLL
  for (int p = 0; p < P; ++p) acc[p] = vdupq_n_f32(0.0f);
  for (int64_t i = 0; i < t.taps; i += kRun) {
    float32x4_t w[kRun];
    DDI_UNROLL
    for (int r = 0; r < kRun; ++r) w[r] = vld1q_f32(t.weight + t.tap[i + r].weight + column);
    const float* x = in + t.tap[i].in;
    DDI_UNROLL
    for (int j = 0; j < P + kRun - 1; ++j, x += t.in_stride) {
      const float32x4_t v = kFull ? vld1q_f32(x) : load_first(x, n);
      DDI_UNROLL
      for (int r = 0; r < kRun; ++r) {
        if (j >= r && j < P + r) acc[j - r] = multiply_add(acc[j - r], v, w[r]);
      }
    }
  }
  const DepthwiseTile<float> e = t;  // which no store can change
  const uint32x4_t in_open = lanes_of(e.in_open >> column),
                   out_open = lanes_of(e.out_open >> column);
  const float32x4_t bias = vld1q_f32(e.bias + column);
  DDI_UNROLL
  for (int p = 0; p < P; ++p) {
    const int64_t at = (first + p) * e.out_stride + column;
    float32x4_t y = vaddq_f32(keep(in_open, acc[p]), bias);
    if (e.scale != nullptr) y = vmulq_f32(y, vld1q_f32(e.scale + column));
    y = keep(out_open, y);
    if (e.residual != nullptr) y = vaddq_f32(y, load_first(e.residual + at, n));
    store_first(e.out + at, n, activate(y, e.relu));
  }
}

template <bool kFull, int kRun, int P = kMost>
void run_tile(const DepthwiseTile<float>& t, int64_t first, int64_t outputs, int column) {
  if (outputs == P) {
    tile_of<P, kFull, kRun>(t, first, column);
  } else if constexpr (P > 1) {
    run_tile<kFull, kRun, P - 1>(t, first, outputs, column);
  }
}

using TileFn = void (*)(const DepthwiseTile<float>&, int64_t, int64_t, int);

// Tiles of a run differ by at most one output.
void run(const DepthwiseTile<float>& t, int64_t outputs) {
  const int64_t count = (outputs + kMost - 1) / kMost;
  for (int column = 0; column < t.lanes; column += kQuarter) {
    TileFn tile = t.run == 3 ? run_tile<true, 3> : run_tile<true, 1>;
    if (t.lanes < column + kQuarter) tile = t.run == 3 ? run_tile<false, 3> : run_tile<false, 1>;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t first = i * outputs / count;
      tile(t, first, (i + 1) * outputs / count - first, column);
    }
  }
}

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

const DepthwiseTileFn<float> kNeonDepthwiseF32 = run;

}  // namespace ddi
#endif
