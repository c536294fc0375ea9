// Micro-kernels for int8 on NEON: bytes are multiplied to 16 bits and added in pairs to 32 bits,
// both exactly. Activations become signed where they are loaded, so there are no 128 to take back.
// Each lane keeps the sums of two pairs apart until the end, so a pixel takes eight registers, and
// with the products on their way one pixel fills 16 or more: tiles are no larger.
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

struct MultiplyBytes {
  struct Sums {
    int32x4_t half[4][2];  // of each quarter, two sums a lane
  };
  using Type = int8_t;
  static constexpr int kPixels = 1;
  using Weights = int8x16_t;
  static DDI_INLINE Sums zero() {
    const int32x4_t none = vdupq_n_s32(0);
    return {{{none, none}, {none, none}, {none, none}, {none, none}}};
  }
  static DDI_INLINE Weights weights(const uint32_t* row) {
    return vreinterpretq_s8_u32(vld1q_u32(row));
  }
  static DDI_INLINE int32x4_t inputs(uint32x4_t x) {
    return vreinterpretq_s32_u32(veorq_u32(x, vdupq_n_u32(Types<int8_t>::kZero)));
  }
  // Two lanes.
  static DDI_INLINE int32x4_t add_pairs(int32x4_t sum, int8x8_t x, int8x8_t w) {
    return vpadalq_s16(sum, vmull_s8(x, w));
  }
  static DDI_INLINE void multiply_halves(Sums& sums, int q, int8x8_t low, int8x8_t high,
                                         Weights w) {
    sums.half[q][0] = add_pairs(sums.half[q][0], low, vget_low_s8(w));
    sums.half[q][1] = add_pairs(sums.half[q][1], high, vget_high_s8(w));
  }
#if defined(__aarch64__)
  template <int J>
  static DDI_INLINE void multiply_add(Sums& sums, int q, int32x4_t x, Weights w) {
    if constexpr (J >= 0) x = vdupq_laneq_s32(x, J);
    const int8x16_t bytes = vreinterpretq_s8_s32(x);
    multiply_halves(sums, q, vget_low_s8(bytes), vget_high_s8(bytes), w);
  }
  static DDI_INLINE int32x4_t join(int32x4_t low, int32x4_t high) { return vpaddq_s32(low, high); }
#else
  static DDI_INLINE int32x2_t inputs(uint32x2_t x) {
    return vreinterpret_s32_u32(veor_u32(x, vdup_n_u32(Types<int8_t>::kZero)));
  }
  template <int J>
  static DDI_INLINE void multiply_add(Sums& sums, int q, int32x4_t x, Weights w) {
    const int8x16_t bytes = vreinterpretq_s8_s32(x);
    multiply_halves(sums, q, vget_low_s8(bytes), vget_high_s8(bytes), w);
  }
  template <int J>
  static DDI_INLINE void multiply_add(Sums& sums, int q, int32x2_t x, Weights w) {
    const int8x8_t bytes = vreinterpret_s8_s32(vdup_lane_s32(x, J));
    multiply_halves(sums, q, bytes, bytes, w);
  }
  static DDI_INLINE int32x4_t join(int32x4_t low, int32x4_t high) {
    return vcombine_s32(vpadd_s32(vget_low_s32(low), vget_high_s32(low)),
                        vpadd_s32(vget_low_s32(high), vget_high_s32(high)));
  }
#endif
  static DDI_INLINE float32x4_t value(const ConvTile<int8_t>& t, const Sums& sums, int q) {
    const float32x4_t sum = vcvtq_f32_s32(join(sums.half[q][0], sums.half[q][1]));
    return vmulq_f32(sum, vld1q_f32(t.factor + q * kQuarter));
  }
};

void sum_weights(const uint32_t*, const Segment*, int64_t, int32_t* start) {
  for (int l = 0; l < kLanes; l += kQuarter) vst1q_s32(start + l, vdupq_n_s32(0));
}

#if defined(__aarch64__)
// Conversions clamp, and make 0 of NaN.
void quantize(const float* src, int64_t count, float scale, int8_t* dst) {
  const float32x4_t step = vdupq_n_f32(scale);
  for (int64_t i = 0; i < count; i += kQuarter) {
    const int32x4_t v = vcvtnq_s32_f32(vdivq_f32(load_first(src + i, count - i), step));
    const int16x4_t words = vqmovn_s32(v);
    int8_t bytes[2 * kQuarter];
    vst1_s8(bytes, vqmovn_s16(vcombine_s16(words, words)));
    if (count - i < kQuarter) {
      copy_few(bytes, count - i, dst + i);
    } else {
      __builtin_memcpy(dst + i, bytes, kQuarter);
    }
  }
}
#else
// NEON divides by nothing, nor does it round to nearest.
void quantize(const float* src, int64_t count, float scale, int8_t* dst) {
  kScalarInt8.quantize(src, count, scale, dst);
}
#endif

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {
namespace {

constexpr Micro<int8_t> table(int pixels, decltype(Micro<int8_t>::conv_tile) conv_tile) {
  return {{0, pixels, 0, 0},
          4,
          conv_tile,
          compress_panel<int8_t>,
          compress_pixels<int8_t>,
          gather_planes<int8_t>,
          nullptr,
          interleave,
          deinterleave,
          expand_pixels<float>,
          nullptr,
          fill_closed<float>,
          scatter_planes<float>,
          sum_pixels<float>,
          sum_weights,
          quantize};
}

}  // namespace

const Micro<int8_t> kNeonInt8 = table(MultiplyBytes::kPixels, conv_tile<MultiplyBytes>);
#if defined(DDI_NEON_DOT)
const Micro<int8_t> kNeonDotInt8 = table(kNeonDotPixels, neon_dot_conv_tile_int8);
#endif

}  // namespace ddi
#endif
