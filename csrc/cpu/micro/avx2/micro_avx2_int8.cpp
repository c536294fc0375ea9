// Micro-kernels for int8 on AVX2: bytes are widened to 16 bits, whose products are added in pairs
// exactly; multiplying bytes would saturate. Each lane keeps the sums of two pairs apart until the
// end, so a panel takes four accumulators, and a tile 2 pixels.
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

struct MultiplyBytes {
  struct Quarters {  // lanes 4 q to 4 q + 3, two pairs each
    __m256i quarter[4];
  };
  using Type = int8_t;
  using Sums = Quarters;
  using Weights = Quarters;
  using Inputs = __m256i;
  static DDI_INLINE Sums zero() {
    const __m256i none = _mm256_setzero_si256();
    return {{none, none, none, none}};
  }
  static DDI_INLINE Weights weights(const uint32_t* row) {
    const auto* quarters = reinterpret_cast<const __m128i*>(row);
    Weights w;
    DDI_UNROLL
    for (int q = 0; q < 4; ++q) w.quarter[q] = _mm256_cvtepi8_epi16(_mm_loadu_si128(quarters + q));
    return w;
  }
  static DDI_INLINE Inputs inputs(__m256i x) {
    return _mm256_cvtepu8_epi16(_mm256_castsi256_si128(x));
  }
  static DDI_INLINE void multiply_add(Sums& sums, Inputs x, const Weights& w) {
    DDI_UNROLL
    for (int q = 0; q < 4; ++q) {
      sums.quarter[q] = _mm256_add_epi32(sums.quarter[q], _mm256_madd_epi16(x, w.quarter[q]));
    }
  }
  // The lanes of half h, in order.
  static DDI_INLINE __m256i join(const Sums& sums, int h) {
    const __m256i pairs = _mm256_hadd_epi32(sums.quarter[2 * h], sums.quarter[2 * h + 1]);
    return _mm256_permute4x64_epi64(pairs, 0xd8);
  }
  static DDI_INLINE __m256 value(const ConvTile<int8_t>& t, const Sums& sums, int h) {
    const auto* start = reinterpret_cast<const __m256i*>(t.start + h * kHalf);
    const __m256i sum = _mm256_add_epi32(join(sums, h), _mm256_loadu_si256(start));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_loadu_ps(t.factor + h * kHalf));
  }
};

void sum_weights(const uint32_t* panel, const Segment* segment, int64_t segments, int32_t* start) {
  const __m256i zero = _mm256_set1_epi32(static_cast<int>(Types<int8_t>::kZero));
  MultiplyBytes::Sums sums = MultiplyBytes::zero();
  for (int64_t s = 0; s < segments; ++s) {
    const uint32_t* w = panel + segment[s].row * kLanes;
    for (int64_t c = 0; c < segment[s].length; ++c, w += kLanes) {
      MultiplyBytes::multiply_add(sums, MultiplyBytes::inputs(zero), MultiplyBytes::weights(w));
    }
  }
  for (int h = 0; h < 2; ++h) {
    const __m256i sum = MultiplyBytes::join(sums, h);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(start + h * kHalf),
                        _mm256_sub_epi32(_mm256_setzero_si256(), sum));
  }
}

void quantize(const float* src, int64_t count, float scale, int8_t* dst) {
  const __m256 step = _mm256_set1_ps(scale);
  const __m256 least = _mm256_set1_ps(-128.0f), most = _mm256_set1_ps(127.0f);
  for (int64_t i = 0; i < count; i += kHalf) {
    const __m256 v = _mm256_div_ps(load_first(src + i, count - i), step);
    const __m256 clamped = _mm256_min_ps(_mm256_max_ps(v, least), most);
    const __m256i rounded =
        _mm256_cvtps_epi32(_mm256_and_ps(clamped, _mm256_cmp_ps(v, v, _CMP_ORD_Q)));
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    const int64_t bytes = _mm_cvtsi128_si64(_mm_packs_epi16(words, words));
    __builtin_memcpy(dst + i, &bytes, count - i < kHalf ? static_cast<size_t>(count - i) : kHalf);
  }
}

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

const Micro<int8_t> kAvx2Int8 = {{0, 2, 0, 0},
                                 4,
                                 conv_tile<MultiplyBytes>,
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

}  // namespace ddi
#endif
