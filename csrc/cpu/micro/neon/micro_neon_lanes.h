// `Lanes` of NEON, which code that is written once for all instruction sets takes; a panel row is
// four registers. Included inside a target region, behind micro_neon_pixels.h.
#pragma once

namespace ddi {
namespace {

struct Lanes {
  using V = float32x4_t;
  static constexpr int kCount = kQuarter;
  template <class T>
  static DDI_INLINE V load(const T* src, int64_t n) {
    return load_first(src, n);
  }
  template <class T>
  static DDI_INLINE void store(T* dst, int64_t n, V v) {
    store_first(dst, n, v);
  }
  static DDI_INLINE V set(float a) { return vdupq_n_f32(a); }
  static DDI_INLINE V add(V a, V b) { return vaddq_f32(a, b); }
  static DDI_INLINE V sub(V a, V b) { return vsubq_f32(a, b); }
  static DDI_INLINE V mul(V a, V b) { return vmulq_f32(a, b); }
  static DDI_INLINE V madd(V a, V b, V c) { return multiply_add(c, a, b); }
  static DDI_INLINE V activate(V v, bool relu) { return ddi::activate(v, relu); }
  // NEON's maximum and minimum are NaN if either operand is.
  static DDI_INLINE V max(V v, V so_far) { return vmaxq_f32(v, so_far); }
  static DDI_INLINE V clamp(V v, float least, float most) {
    return vminq_f32(vmaxq_f32(v, set(least)), set(most));
  }
  // To nearest even, as sums round whose last place is 1.
  static DDI_INLINE V round(V v) {
    const V shift = set(12582912.0f);
    return vsubq_f32(vaddq_f32(v, shift), shift);
  }
  static DDI_INLINE V power(V v) {
    const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(v), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23));
  }
#if defined(__aarch64__)
  static DDI_INLINE V div(V a, V b) { return vdivq_f32(a, b); }
  static DDI_INLINE float sum(V v) { return vaddvq_f32(v); }
#else
  // There is no division of registers, and its estimates are not exact.
  static DDI_INLINE V div(V a, V b) {
    float x[kCount], y[kCount];
    vst1q_f32(x, a);
    vst1q_f32(y, b);
    for (int i = 0; i < kCount; ++i) x[i] /= y[i];
    return vld1q_f32(x);
  }
  static DDI_INLINE float sum(V v) {
    const float32x2_t pairs = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    return vget_lane_f32(vpadd_f32(pairs, pairs), 0);
  }
#endif
};

}  // namespace
}  // namespace ddi
