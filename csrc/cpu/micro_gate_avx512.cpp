// The micro-kernels of gates for AVX-512.
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa_region.h"
#include "micro_gate.h"

DDI_REGION_AVX512
#include "micro_gate_layers.h"

namespace ddi {
namespace {

struct Lanes {
  using V = __m512;
  static constexpr int kCount = 16;
  static DDI_INLINE __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static DDI_INLINE V load(const float* src, int64_t n) {
    return n >= kCount ? _mm512_loadu_ps(src) : _mm512_maskz_loadu_ps(first(n), src);
  }
  static DDI_INLINE void store(float* dst, int64_t n, V v) {
    if (n >= kCount) {
      _mm512_storeu_ps(dst, v);
    } else {
      _mm512_mask_storeu_ps(dst, first(n), v);
    }
  }
  static DDI_INLINE V set(float a) { return _mm512_set1_ps(a); }
  static DDI_INLINE V add(V a, V b) { return _mm512_add_ps(a, b); }
  static DDI_INLINE V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static DDI_INLINE V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static DDI_INLINE V div(V a, V b) { return _mm512_div_ps(a, b); }
  static DDI_INLINE V madd(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  // min and max return their second operand if either is NaN.
  static DDI_INLINE V clamp(V v, float most) {
    return _mm512_min_ps(set(most), _mm512_max_ps(set(-most), v));
  }
  static DDI_INLINE V round(V v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static DDI_INLINE V power(V v) { return _mm512_scalef_ps(set(1), v); }
  static DDI_INLINE float sum(V v) { return _mm512_reduce_add_ps(v); }
};

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

const GateMicro<float> kGateAvx512F32 = {linear<Lanes>, lstm<Lanes>};

}  // namespace ddi
#endif
