// Winograd transforms for AVX-512: a panel row is one register.
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa_region.h"
#include "micro.h"
#include "micro_winograd.h"
#include "winograd.h"

DDI_REGION_AVX512
#include "micro_winograd_tiles.h"

namespace ddi {
namespace {

struct Lanes {
  using V = __m512;
  static constexpr int kCount = kLanes;
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
  static DDI_INLINE V madd(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  // max returns its second operand if either is NaN, so NaN passes through.
  static DDI_INLINE V activate(V v, bool relu) {
    return relu ? _mm512_max_ps(_mm512_setzero_ps(), v) : v;
  }
};

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

const WinogradMicro kWinogradAvx512 = {{winograd_input<Lanes, 2>, winograd_input<Lanes, 4>},
                                       {winograd_output<Lanes, 2>, winograd_output<Lanes, 4>}};

}  // namespace ddi
#endif
