// The depthwise micro-kernel for AVX2 + FMA: half of the lanes at a time, tiles of up to 12
// outputs, each weight loaded once a tile.
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa_region.h"
#include "micro_depthwise.h"

DDI_REGION_AVX2
namespace ddi {
namespace {

constexpr int kMost = 12, kHalf = 8;

// All ones in the lanes whose bit is set.
__m256i lanes_of(uint32_t bits) {
  const __m256i bit = _mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1);
  const __m256i chosen = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), bit);
  return _mm256_cmpeq_epi32(chosen, bit);
}

template <int P, bool kFull>
void tile_of(const DepthwiseTile<float>& t, int64_t first, int half) {
  const int64_t column = half * kHalf;
  const __m256i lanes = lanes_of(((1u << t.lanes) - 1u) >> column);
  const float* in = t.in + first * t.in_stride + column;
  __m256 acc[P];
  DDI_UNROLL
  for (int p = 0; p < P; ++p) acc[p] = _mm256_setzero_ps();
  for (int64_t i = 0; i < t.taps; ++i) {
    const __m256 w = _mm256_loadu_ps(t.weight + t.tap[i].weight + column);
    const float* x = in + t.tap[i].in;
    DDI_UNROLL
    for (int p = 0; p < P; ++p, x += t.in_stride) {
      const __m256 v = kFull ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, lanes);
      acc[p] = _mm256_fmadd_ps(v, w, acc[p]);
    }
  }
  const __m256 in_open = _mm256_castsi256_ps(lanes_of(t.in_open >> column));
  const __m256 out_open = _mm256_castsi256_ps(lanes_of(t.out_open >> column));
  const __m256 bias = _mm256_loadu_ps(t.bias + column);
  DDI_UNROLL
  for (int p = 0; p < P; ++p) {
    const int64_t at = (first + p) * t.out_stride + column;
    __m256 y = _mm256_add_ps(_mm256_and_ps(in_open, acc[p]), bias);
    if (t.scale != nullptr) y = _mm256_mul_ps(y, _mm256_loadu_ps(t.scale + column));
    y = _mm256_and_ps(out_open, y);
    if (t.residual != nullptr) y = _mm256_add_ps(y, _mm256_maskload_ps(t.residual + at, lanes));
    // max returns its second operand if either is NaN, so NaN passes through.
    if (t.relu) y = _mm256_max_ps(_mm256_setzero_ps(), y);
    if (kFull) {
      _mm256_storeu_ps(t.out + at, y);
    } else {
      _mm256_maskstore_ps(t.out + at, lanes, y);
    }
  }
}

using TileFn = void (*)(const DepthwiseTile<float>&, int64_t, int);

template <bool F>
constexpr TileFn kTiles[kMost + 1] = {nullptr,       tile_of<1, F>, tile_of<2, F>,  tile_of<3, F>,
                                      tile_of<4, F>, tile_of<5, F>, tile_of<6, F>,  tile_of<7, F>,
                                      tile_of<8, F>, tile_of<9, F>, tile_of<10, F>, tile_of<11, F>,
                                      tile_of<12, F>};

// Tiles of a run differ by at most one output.
void run(const DepthwiseTile<float>& t, int64_t outputs) {
  const int64_t count = (outputs + kMost - 1) / kMost;
  for (int half = 0; half * kHalf < t.lanes; ++half) {
    const TileFn* tiles = t.lanes >= (half + 1) * kHalf ? kTiles<true> : kTiles<false>;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t first = i * outputs / count;
      tiles[(i + 1) * outputs / count - first](t, first, half);
    }
  }
}

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

const DepthwiseTileFn<float> kDepthwiseAvx2F32 = run;

}  // namespace ddi
#endif
