// The int8 tile of ARM processors with dot products: one instruction adds the products of a cell in
// every lane, four times what float does, by element like those. Activations become signed where
// they are loaded, because SDOT multiplies signed by signed bytes.
#include "base/isa.h"

#if defined(DDI_NEON_DOT)
#include <arm_neon.h>

#include <cstddef>

#include "base/isa_region.h"
#include "micro/micro.h"

DDI_REGION_NEON_DOT
#include "micro_neon_pixels.h"
#include "micro_neon_tile.h"

namespace ddi {
namespace {

struct DotBytes {
  struct Sums {
    int32x4_t quarter[4];
  };
  using Type = int8_t;
  using Weights = int8x16_t;
  static constexpr int kPixels = kNeonDotPixels;
  static DDI_INLINE Sums zero() {
    const int32x4_t none = vdupq_n_s32(0);
    return {{none, none, none, none}};
  }
  static DDI_INLINE Weights weights(const uint32_t* row) {
    return vreinterpretq_s8_u32(vld1q_u32(row));
  }
  static DDI_INLINE int8x16_t inputs(uint32x4_t x) {
    return vreinterpretq_s8_u32(veorq_u32(x, vdupq_n_u32(Types<int8_t>::kZero)));
  }
  template <int J>
  static DDI_INLINE void multiply_add(Sums& sums, int q, int8x16_t x, Weights w) {
    if constexpr (J < 0) {
      sums.quarter[q] = vdotq_s32(sums.quarter[q], w, x);
    } else {
      sums.quarter[q] = vdotq_laneq_s32(sums.quarter[q], w, x, J);
    }
  }
  static DDI_INLINE float32x4_t value(const ConvTile<int8_t>& t, const Sums& sums, int q) {
    return vmulq_f32(vcvtq_f32_s32(sums.quarter[q]), vld1q_f32(t.factor + q * kQuarter));
  }
};

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

void neon_dot_conv_tile_int8(const ConvTile<int8_t>& tile, int pixels, int panels, int strips) {
  conv_tile<DotBytes>(tile, pixels, panels, strips);
}

}  // namespace ddi
#endif
