// The bfloat16 tile of ARM processors with FEAT_BF16: BFDOT adds the products of a pair in every
// lane, twice what float does, by element like those. It takes denormals as zeros. BFMMLA would do
// twice as much again, but wants two lanes' weights side by side, which is another packed layout.
#include "base/isa.h"

#if defined(DDI_NEON_DOT)
#include <arm_neon.h>

#include <cstddef>

#include "base/isa_region.h"
#include "micro/micro.h"

DDI_REGION_NEON_BF16
#include "micro_neon_pixels.h"
#include "micro_neon_tile.h"

namespace ddi {
namespace {

struct DotPairs {
  struct Sums {
    float32x4_t quarter[4];
  };
  using Type = bf16;
  using Weights = bfloat16x8_t;
  static constexpr int kPixels = kNeonDotPixels;
  static DDI_INLINE Sums zero() {
    const float32x4_t none = vdupq_n_f32(0.0f);
    return {{none, none, none, none}};
  }
  static DDI_INLINE Weights weights(const uint32_t* row) { return inputs(vld1q_u32(row)); }
  static DDI_INLINE bfloat16x8_t inputs(uint32x4_t x) { return vreinterpretq_bf16_u32(x); }
  template <int J>
  static DDI_INLINE void multiply_add(Sums& sums, int q, bfloat16x8_t x, Weights w) {
    if constexpr (J < 0) {
      sums.quarter[q] = vbfdotq_f32(sums.quarter[q], w, x);
    } else {
      sums.quarter[q] = vbfdotq_laneq_f32(sums.quarter[q], w, x, J);
    }
  }
  static DDI_INLINE float32x4_t value(const ConvTile<bf16>&, const Sums& sums, int q) {
    return sums.quarter[q];
  }
};

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

void neon_dot_conv_tile_bf16(const ConvTile<bf16>& tile, int pixels, int panels, int strips) {
  conv_tile<DotPairs>(tile, pixels, panels, strips);
}

}  // namespace ddi
#endif
