// Micro-kernels for bfloat16 on NEON: a pair is multiplied as two floats, which its halves become
// by a shift and a mask. Activations and weights take two registers each, so tiles have 3 pixels on
// 64-bit ARM (12 registers of sums, 6 of activations, 8 of weights, the mask), 2 on 32-bit ARM.
#include "base/isa.h"

#if defined(DDI_NEON)
#include <arm_neon.h>

#include <cstddef>

#include "base/isa_region.h"
#include "micro/micro.h"

DDI_REGION_NEON
#include "micro_neon_pixels.h"
#include "micro_neon_tile.h"
#include "micro_neon_weights.h"

namespace ddi {
namespace {

struct MultiplyPairs {
  struct Sums {
    float32x4_t quarter[4];
  };
  struct Pairs {
    float32x4_t first, second;
  };
  using Type = bf16;
  using Weights = Pairs;
  static DDI_INLINE Sums zero() {
    const float32x4_t none = vdupq_n_f32(0.0f);
    return {{none, none, none, none}};
  }
  static DDI_INLINE Pairs inputs(uint32x4_t x) {
    return {vreinterpretq_f32_u32(vshlq_n_u32(x, 16)),
            vreinterpretq_f32_u32(vandq_u32(x, vdupq_n_u32(0xffff0000u)))};
  }
  static DDI_INLINE Weights weights(const uint32_t* row) { return inputs(vld1q_u32(row)); }
#if defined(__aarch64__)
  static constexpr int kPixels = 3;
  template <int J>
  static DDI_INLINE void multiply_add(Sums& sums, int q, const Pairs& x, const Weights& w) {
    float32x4_t& sum = sums.quarter[q];
    if constexpr (J < 0) {
      sum = vfmaq_f32(vfmaq_f32(sum, w.first, x.first), w.second, x.second);
    } else {
      sum = vfmaq_laneq_f32(sum, w.first, x.first, J);
      sum = vfmaq_laneq_f32(sum, w.second, x.second, J);
    }
  }
#else
  struct HalfPairs {
    float32x2_t first, second;
  };
  static constexpr int kPixels = 2;
  static DDI_INLINE HalfPairs inputs(uint32x2_t x) {
    return {vreinterpret_f32_u32(vshl_n_u32(x, 16)),
            vreinterpret_f32_u32(vand_u32(x, vdup_n_u32(0xffff0000u)))};
  }
  template <int J>
  static DDI_INLINE void multiply_add(Sums& sums, int q, const Pairs& x, const Weights& w) {
    sums.quarter[q] = vmlaq_f32(vmlaq_f32(sums.quarter[q], w.first, x.first), w.second, x.second);
  }
  template <int J>
  static DDI_INLINE void multiply_add(Sums& sums, int q, const HalfPairs& x, const Weights& w) {
    float32x4_t& sum = sums.quarter[q];
    sum = vmlaq_lane_f32(sum, w.first, x.first, J);
    sum = vmlaq_lane_f32(sum, w.second, x.second, J);
  }
#endif
  static DDI_INLINE float32x4_t value(const ConvTile<bf16>&, const Sums& sums, int q) {
    return sums.quarter[q];
  }
};

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {
namespace {

constexpr Micro<bf16> table(int pixels, decltype(Micro<bf16>::conv_tile) conv_tile) {
  return {{0, pixels, 0, 0},
          4,
          conv_tile,
          compress_panel<bf16>,
          compress_pixels<bf16>,
          gather_planes<bf16>,
          nullptr,
          interleave,
          deinterleave,
          expand_pixels<bf16>,
          nullptr,
          fill_closed<bf16>,
          scatter_planes<bf16>,
          sum_pixels<bf16>,
          nullptr,
          nullptr};
}

}  // namespace

const Micro<bf16> kNeonBf16 = table(MultiplyPairs::kPixels, conv_tile<MultiplyPairs>);
#if defined(DDI_NEON_DOT)
const Micro<bf16> kNeonDotBf16 = table(kNeonDotPixels, neon_dot_conv_tile_bf16);
#endif

}  // namespace ddi
#endif
