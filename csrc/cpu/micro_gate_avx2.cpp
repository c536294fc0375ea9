// The micro-kernels of gates for AVX2 + FMA.
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa_region.h"
#include "micro_gate.h"

DDI_REGION_AVX2
#include "micro_gate_layers.h"

namespace ddi {
namespace {

struct Lanes {
  using V = __m256;
  static constexpr int kCount = 8;
  static DDI_INLINE __m256i first(int64_t n) {
    const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
  }
  static DDI_INLINE V load(const float* src, int64_t n) {
    return n >= kCount ? _mm256_loadu_ps(src) : _mm256_maskload_ps(src, first(n));
  }
  static DDI_INLINE void store(float* dst, int64_t n, V v) {
    if (n >= kCount) {
      _mm256_storeu_ps(dst, v);
    } else {
      _mm256_maskstore_ps(dst, first(n), v);
    }
  }
  static DDI_INLINE V set(float a) { return _mm256_set1_ps(a); }
  static DDI_INLINE V add(V a, V b) { return _mm256_add_ps(a, b); }
  static DDI_INLINE V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static DDI_INLINE V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static DDI_INLINE V div(V a, V b) { return _mm256_div_ps(a, b); }
  static DDI_INLINE V madd(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  // min and max return their second operand if either is NaN.
  static DDI_INLINE V clamp(V v, float most) {
    return _mm256_min_ps(set(most), _mm256_max_ps(set(-most), v));
  }
  static DDI_INLINE V round(V v) {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static DDI_INLINE V power(V v) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static DDI_INLINE float sum(V v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
};

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

const GateMicro<float> kGateAvx2F32 = {linear<Lanes>, lstm<Lanes>};

}  // namespace ddi
#endif
