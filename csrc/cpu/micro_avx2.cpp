// Micro-kernels for AVX2 + FMA + F16C: a weight panel row is two registers, and a tile of 6 pixels
// x 1 panel fills the 16 registers (12 accumulators, the row, one broadcast). Half precision is
// converted where pixels are moved, and computed like float.
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa_region.h"
#include "micro.h"

DDI_REGION_AVX2
#include "micro_avx2_pixels.h"
#include "micro_avx2_tile.h"

namespace ddi {
namespace {

struct MultiplyFloats {
  struct Sums {
    __m256 half[2];
  };
  using Type = float;
  using Weights = Sums;
  using Inputs = __m256;
  static DDI_INLINE Sums zero() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
  static DDI_INLINE Weights weights(const float* row) {
    return {{_mm256_loadu_ps(row), _mm256_loadu_ps(row + kHalf)}};
  }
  static DDI_INLINE Inputs inputs(__m256 x) { return x; }
  static DDI_INLINE void multiply_add(Sums& sums, Inputs x, const Weights& w) {
    sums.half[0] = _mm256_fmadd_ps(x, w.half[0], sums.half[0]);
    sums.half[1] = _mm256_fmadd_ps(x, w.half[1], sums.half[1]);
  }
  static DDI_INLINE __m256 value(const ConvTile<float>&, const Sums& sums, int h) {
    return sums.half[h];
  }
};

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

const Micro<float> kAvx2F32 = {{0, 6, 0, 0},
                               4,
                               conv_tile<MultiplyFloats>,
                               compress_panel<float>,
                               compress_pixels<float>,
                               gather_planes<float>,
                               interleave,
                               deinterleave,
                               expand_pixels<float>,
                               fill_closed<float>,
                               scatter_planes<float>,
                               sum_pixels<float>,
                               nullptr,
                               nullptr};

const Micro<half> kAvx2F16 = {{0, 6, 0, 0},
                              4,
                              conv_tile<MultiplyFloats>,
                              compress_panel<half>,
                              compress_pixels<half>,
                              gather_planes<half>,
                              interleave,
                              deinterleave,
                              expand_pixels<half>,
                              fill_closed<half>,
                              scatter_planes<half>,
                              sum_pixels<half>,
                              nullptr,
                              nullptr};

}  // namespace ddi
#endif
