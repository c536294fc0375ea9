// Micro-kernels for bfloat16 on AVX2: a pair is multiplied as two floats, which its halves become
// by a shift and a mask. 4 pixels: 8 accumulators, 4 registers of weights, 2 of inputs, the mask.
#if defined(__x86_64__)
#include <immintrin.h>

#include "base/isa_region.h"
#include "micro/micro.h"

DDI_REGION_AVX2
#include "micro_avx2_lanes.h"
#include "micro_avx2_pixels.h"
#include "micro_avx2_tile.h"

namespace ddi {
namespace {

struct MultiplyPairs {
  struct Sums {
    __m256 half[2];
  };
  struct Weights {
    __m256 first[2], second[2];
  };
  struct Inputs {
    __m256 first, second;
  };
  using Type = bf16;
  static DDI_INLINE Sums zero() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
  static DDI_INLINE Inputs inputs(__m256i x) {
    const __m256i second = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(x, second))};
  }
  static DDI_INLINE Weights weights(const uint32_t* row) {
    const auto* halves = reinterpret_cast<const __m256i*>(row);
    const Inputs low = inputs(_mm256_loadu_si256(halves));
    const Inputs high = inputs(_mm256_loadu_si256(halves + 1));
    return {{low.first, high.first}, {low.second, high.second}};
  }
  static DDI_INLINE void multiply_add(Sums& sums, const Inputs& x, const Weights& w) {
    DDI_UNROLL
    for (int h = 0; h < 2; ++h) {
      sums.half[h] = _mm256_fmadd_ps(x.first, w.first[h], sums.half[h]);
      sums.half[h] = _mm256_fmadd_ps(x.second, w.second[h], sums.half[h]);
    }
  }
  static DDI_INLINE __m256 value(const ConvTile<bf16>&, const Sums& sums, int h) {
    return sums.half[h];
  }
};

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

const Micro<bf16> kAvx2Bf16 = {{0, 4, 0, 0},
                               4,
                               conv_tile<MultiplyPairs>,
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

}  // namespace ddi
#endif
