// Winograd transforms for AVX2 + FMA: a panel row is two registers.
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa_region.h"
#include "micro.h"
#include "micro_winograd.h"
#include "winograd.h"

DDI_REGION_AVX2
#include "micro_winograd_tiles.h"

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
  static DDI_INLINE V madd(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  // max returns its second operand if either is NaN, so NaN passes through.
  static DDI_INLINE V activate(V v, bool relu) {
    return relu ? _mm256_max_ps(_mm256_setzero_ps(), v) : v;
  }
};

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

const WinogradMicro kWinogradAvx2 = {{winograd_input<Lanes, 2>, winograd_input<Lanes, 4>},
                                     {winograd_output<Lanes, 2>, winograd_output<Lanes, 4>}};

}  // namespace ddi
#endif
