// Micro-kernels for bfloat16 on AVX-512. Activations and weights stay in pairs of 16 bits, half the
// bytes of float; here a pair is multiplied as two floats, which its halves become by a shift and a
// mask. Processors with AVX512-BF16 take the tile of micro_avx512_dot_bf16.cpp instead.
#if defined(__x86_64__)
#include <immintrin.h>

#include "base/isa_region.h"
#include "micro/micro.h"

DDI_REGION_AVX512
#include "micro_avx512_lanes.h"
#include "micro_avx512_panel.h"
#include "micro_avx512_pixels.h"
#include "micro_avx512_tile.h"

namespace ddi {
namespace {

struct MultiplyPairs {
  // For processors between two generations: no strips, nothing fetched.
  static constexpr int kMaxStrips = 1;
  static constexpr bool kFetches = false;
  struct Pair {
    __m512 first, second;
  };
  using Type = bf16;
  using Sum = __m512;
  using Weights = Pair;
  using Inputs = Pair;
  static DDI_INLINE Sum start(const ConvTile<bf16>&, int) { return _mm512_setzero_ps(); }
  static DDI_INLINE Weights weights(const uint32_t* row) { return inputs(_mm512_loadu_si512(row)); }
  static DDI_INLINE Inputs inputs(__m512i x) {
    const __m512i second = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(x, second))};
  }
  static DDI_INLINE Sum multiply_add(Sum sum, const Inputs& x, const Weights& w) {
    return _mm512_fmadd_ps(x.second, w.second, _mm512_fmadd_ps(x.first, w.first, sum));
  }
  static DDI_INLINE __m512 value(const ConvTile<bf16>&, int, Sum sum) { return sum; }
};

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

namespace {

using ConvTileFn = decltype(Micro<bf16>::conv_tile);

constexpr Micro<bf16> table(int of_one, int of_two, int of_three, int max_strips,
                            ConvTileFn conv_tile) {
  return {{0, of_one, of_two, of_three},
          max_strips,
          conv_tile,
          compress_cells<2>,
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
}

}  // namespace

const Micro<bf16> kAvx512Bf16 =
    table(16, 12, 7, MultiplyPairs::kMaxStrips, conv_tile<MultiplyPairs>);
const Micro<bf16> kAvx512DotBf16 = table(16, 14, 9, 4, avx512_dot_conv_tile_bf16);
const Micro<bf16> kAvx512AmxBf16 = table(32, 32, 0, 1, avx512_amx_conv_tile_bf16);

}  // namespace ddi
#endif
