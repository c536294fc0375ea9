// Micro-kernels for AVX2 + FMA + F16C: a weight panel row is two registers, and a tile of 6 pixels
// x 1 panel fills the 16 registers (12 accumulators, the row, one broadcast). Half precision is
// converted where pixels are moved, and computed like float.
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

void affine_relu(int64_t pixels, int64_t channels, const float* scale, const float* shift,
                 float* data) {
  for (int64_t c = 0; c < channels; c += kHalf) {
    const int64_t n = channels - c;
    const __m256 a = load_first(scale + c, n), b = load_first(shift + c, n);
    for (int64_t p = 0; p < pixels; ++p) {
      float* at = data + p * channels + c;
      store_first(at, n, activate(_mm256_fmadd_ps(load_first(at, n), a, b), true));
    }
  }
}

void scatter_pixels(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                    int64_t dst_stride, float* dst) {
  for (int64_t p = 0; p < pixels; ++p, src += src_stride, dst += dst_stride) {
    const float* s = src;
    for (int64_t c = 0; c < set.channels; c += kHalf) {
      const uint32_t mask = (set.bits[c / kLanes] >> (c % kLanes)) & 0xffu;
      const __m256i lanes = lanes_of(kPermutations.spread[mask]);
      const __m256i open = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(-1));
      _mm256_maskstore_ps(dst + c, open, _mm256_permutevar8x32_ps(_mm256_loadu_ps(s), lanes));
      s += __builtin_popcount(mask);
    }
  }
}

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
                               affine_relu,
                               interleave,
                               deinterleave,
                               expand_pixels<float>,
                               scatter_pixels,
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
                              nullptr,
                              interleave,
                              deinterleave,
                              expand_pixels<half>,
                              nullptr,
                              fill_closed<half>,
                              scatter_planes<half>,
                              sum_pixels<half>,
                              nullptr,
                              nullptr};

}  // namespace ddi
#endif
