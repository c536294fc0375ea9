// Micro-kernels for int8 on AVX-512 with VNNI: one instruction multiplies four channels in every
// lane and adds them to 32-bit sums, without saturation. It wants one operand unsigned, see
// Types<int8_t>.
#if defined(__x86_64__)
#include <immintrin.h>

#include "base/isa_region.h"
#include "micro/micro.h"

DDI_REGION_AVX512_VNNI
#include "micro_avx512_lanes.h"
#include "micro_avx512_panel.h"
#include "micro_avx512_pixels.h"
#include "micro_avx512_tile.h"

namespace ddi {
namespace {

struct DotBytes {
  static constexpr int kMaxStrips = 4;
  static constexpr bool kFetches = false;  // its weights are few
  // Not __m512i, a vector of 64-bit numbers: GCC 12 would send sums through memory to convert them.
  typedef int32_t Sum __attribute__((vector_size(64)));
  using Type = int8_t;
  using Weights = __m512i;
  using Inputs = __m512i;
  static DDI_INLINE Sum start(const ConvTile<int8_t>& t, int panel) {
    return reinterpret_cast<Sum>(_mm512_loadu_si512(t.start + panel * kLanes));
  }
  static DDI_INLINE Weights weights(const uint32_t* row) { return _mm512_loadu_si512(row); }
  static DDI_INLINE Inputs inputs(__m512i x) { return x; }
  static DDI_INLINE Sum multiply_add(Sum sum, Inputs x, Weights w) {
    return reinterpret_cast<Sum>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), x, w));
  }
  static DDI_INLINE __m512 value(const ConvTile<int8_t>& t, int panel, Sum sum) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(sum)),
                         _mm512_loadu_ps(t.factor + panel * kLanes));
  }
};

void sum_weights(const uint32_t* panel, const Segment* segment, int64_t segments, int32_t* start) {
  const __m512i zero = _mm512_set1_epi32(static_cast<int>(Types<int8_t>::kZero));
  __m512i sum = _mm512_setzero_si512();
  for (int64_t s = 0; s < segments; ++s) {
    const uint32_t* w = panel + segment[s].row * kLanes;
    for (int64_t c = 0; c < segment[s].length; ++c, w += kLanes) {
      sum = _mm512_dpbusd_epi32(sum, zero, _mm512_loadu_si512(w));
    }
  }
  _mm512_storeu_si512(start, _mm512_sub_epi32(_mm512_setzero_si512(), sum));
}

void quantize(const float* src, int64_t count, float scale, int8_t* dst) {
  const __m512 step = _mm512_set1_ps(scale);
  const __m512 least = _mm512_set1_ps(-128.0f), most = _mm512_set1_ps(127.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 lanes = first_lanes(count - i);
    const __m512 v = _mm512_div_ps(load_lanes(src + i, lanes), step);
    const __mmask16 numbers = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
    const __m512 clamped = _mm512_min_ps(_mm512_maskz_max_ps(numbers, v, least), most);
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(clamped));
    if (lanes == 0xffff) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i), bytes);
    } else {
      _mm_mask_storeu_epi8(dst + i, lanes, bytes);
    }
  }
}

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

namespace {

using ConvTileFn = decltype(Micro<int8_t>::conv_tile);

constexpr Micro<int8_t> table(int of_one, int of_two, int of_three, int max_strips,
                              ConvTileFn conv_tile) {
  return {{0, of_one, of_two, of_three},
          max_strips,
          conv_tile,
          compress_cells<4>,
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

const Micro<int8_t> kAvx512VnniInt8 = table(16, 14, 9, 4, conv_tile<DotBytes>);
const Micro<int8_t> kAvx512AmxInt8 = table(32, 32, 0, 1, avx512_amx_conv_tile_int8);

}  // namespace ddi
#endif
