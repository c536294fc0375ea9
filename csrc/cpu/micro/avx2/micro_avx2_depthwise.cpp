// The depthwise micro-kernel for AVX2 + FMA: half of the lanes at a time, tiles of up to 12
// outputs, each weight loaded once a tile and each input once for the taps of a run.
#if defined(__x86_64__)
#include <immintrin.h>

#include "base/isa_region.h"
#include "micro/micro_depthwise.h"

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

template <int P, bool kFull, int kRun>
void tile_of(const DepthwiseTile<float>& t, int64_t first, int half) {
  const int64_t column = half * kHalf;
  const __m256i lanes = lanes_of(((1u << t.lanes) - 1u) >> column);
  const float* in = t.in + first * t.in_stride + column;
  __m256 acc[P];
  DDI_UNROLL
  for (int p = 0; p < P; ++p) acc[p] = _mm256_setzero_ps();
  for (int64_t i = 0; i < t.taps; i += kRun) {
    __m256 w[kRun];
    DDI_UNROLL
    for (int r = 0; r < kRun; ++r) w[r] = _mm256_loadu_ps(t.weight + t.tap[i + r].weight + column);
    const float* x = in + t.tap[i].in;
    DDI_UNROLL
    for (int j = 0; j < P + kRun - 1; ++j, x += t.in_stride) {
      __m256 v = kFull ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, lanes);
      // Else GCC makes it a memory operand of each multiply-add, and loads it three times.
      if (kRun > 1) __asm__("" : "+x"(v));
      DDI_UNROLL
      for (int r = 0; r < kRun; ++r) {
        if (j >= r && j < P + r) acc[j - r] = _mm256_fmadd_ps(v, w[r], acc[j - r]);
      }
    }
  }
  const DepthwiseTile<float> e = t;  // which no store can change
  const __m256 in_open = _mm256_castsi256_ps(lanes_of(e.in_open >> column));
  const __m256 out_open = _mm256_castsi256_ps(lanes_of(e.out_open >> column));
  const __m256 bias = _mm256_loadu_ps(e.bias + column);
  DDI_UNROLL
  for (int p = 0; p < P; ++p) {
    const int64_t at = (first + p) * e.out_stride + column;
    __m256 y = _mm256_add_ps(_mm256_and_ps(in_open, acc[p]), bias);
    if (e.scale != nullptr) y = _mm256_mul_ps(y, _mm256_loadu_ps(e.scale + column));
    y = _mm256_and_ps(out_open, y);
    if (e.residual != nullptr) y = _mm256_add_ps(y, _mm256_maskload_ps(e.residual + at, lanes));
    // max returns its second operand if either is NaN, so NaN passes through.
    if (e.relu) y = _mm256_max_ps(_mm256_setzero_ps(), y);
    if (kFull) {
      _mm256_storeu_ps(e.out + at, y);
    } else {
      _mm256_maskstore_ps(e.out + at, lanes, y);
    }
  }
}

using TileFn = void (*)(const DepthwiseTile<float>&, int64_t, int);

template <bool F, int R>
constexpr TileFn kTiles[kMost + 1] = {
    nullptr,           tile_of<1, F, R>,  tile_of<2, F, R>, tile_of<3, F, R>, tile_of<4, F, R>,
    tile_of<5, F, R>,  tile_of<6, F, R>,  tile_of<7, F, R>, tile_of<8, F, R>, tile_of<9, F, R>,
    tile_of<10, F, R>, tile_of<11, F, R>, tile_of<12, F, R>};

template <bool F>
const TileFn* tiles_of(const DepthwiseTile<float>& t) {
  return t.run == 3 ? kTiles<F, 3> : kTiles<F, 1>;
}

// Tiles of a run differ by at most one output.
void run(const DepthwiseTile<float>& t, int64_t outputs) {
  const int64_t count = (outputs + kMost - 1) / kMost;
  for (int half = 0; half * kHalf < t.lanes; ++half) {
    const TileFn* tiles = t.lanes >= (half + 1) * kHalf ? tiles_of<true>(t) : tiles_of<false>(t);
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

const DepthwiseTileFn<float> kAvx2DepthwiseF32 = run;

}  // namespace ddi
#endif
