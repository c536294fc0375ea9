// The bfloat16 tile of processors with AVX512-BF16: one instruction multiplies and adds a pair of
// channels in every lane, twice what float does. It takes denormals as zeros.
#if defined(__x86_64__)
#include <immintrin.h>

#include "base/isa_region.h"
#include "micro/micro.h"

DDI_REGION_AVX512_BF16
#include "micro_avx512_lanes.h"
#include "micro_avx512_pixels.h"
#include "micro_avx512_tile.h"

namespace ddi {
namespace {

struct DotPairs {
  static constexpr int kMaxStrips = 4;
  static constexpr bool kFetches = true;
  using Type = bf16;
  using Sum = __m512;
  using Weights = __m512i;
  using Inputs = __m512i;
  static DDI_INLINE Sum start(const ConvTile<bf16>&, int) { return _mm512_setzero_ps(); }
  static DDI_INLINE Weights weights(const uint32_t* row) { return _mm512_loadu_si512(row); }
  static DDI_INLINE Inputs inputs(__m512i x) { return x; }
  static DDI_INLINE Sum multiply_add(Sum sum, Inputs x, Weights w) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  }
  static DDI_INLINE __m512 value(const ConvTile<bf16>&, int, Sum sum) { return sum; }
};

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

void avx512_dot_conv_tile_bf16(const ConvTile<bf16>& tile, int pixels, int panels, int strips) {
  conv_tile<DotPairs>(tile, pixels, panels, strips);
}

}  // namespace ddi
#endif
