// The depthwise micro-kernel for AVX-512: a tile of up to 12 outputs loads each weight once, and
// each input once for three taps of a run; alone, taps are memory operands of the multiply-adds,
// which is what bounds their speed.
#if defined(__x86_64__)
#include <immintrin.h>

#include "base/isa_region.h"
#include "micro/micro_depthwise.h"

DDI_REGION_AVX512
namespace ddi {
namespace {

constexpr int kMost = 12;

template <int P, bool kFull, int kRun>
void tile_of(const DepthwiseTile<float>& t, int64_t first) {
  const __mmask16 lanes = kFull ? 0xffff : static_cast<__mmask16>((1u << t.lanes) - 1u);
  const float* in = t.in + first * t.in_stride;
  __m512 acc[P];
  DDI_UNROLL
  for (int p = 0; p < P; ++p) acc[p] = _mm512_setzero_ps();
  for (int64_t i = 0; i < t.taps; i += kRun) {
    __m512 w[kRun];
    DDI_UNROLL
    for (int r = 0; r < kRun; ++r) w[r] = _mm512_loadu_ps(t.weight + t.tap[i + r].weight);
    const float* x = in + t.tap[i].in;
    DDI_UNROLL
    for (int j = 0; j < P + kRun - 1; ++j, x += t.in_stride) {
      __m512 v = kFull ? _mm512_loadu_ps(x) : _mm512_maskz_loadu_ps(lanes, x);
      // Else GCC makes it a memory operand of each multiply-add, and loads it three times.
      if (kRun > 1) __asm__("" : "+v"(v));
      DDI_UNROLL
      for (int r = 0; r < kRun; ++r) {
        if (j >= r && j < P + r) acc[j - r] = _mm512_fmadd_ps(v, w[r], acc[j - r]);
      }
    }
  }
  const DepthwiseTile<float> e = t;  // which no store can change
  const __m512 bias = _mm512_loadu_ps(e.bias);
  const __m512 scale = e.scale == nullptr ? _mm512_set1_ps(1) : _mm512_loadu_ps(e.scale);
  DDI_UNROLL
  for (int p = 0; p < P; ++p) {
    const int64_t at = (first + p) * e.out_stride;
    const __m512 sum = _mm512_add_ps(_mm512_maskz_mov_ps(e.in_open, acc[p]), bias);
    __m512 y = _mm512_maskz_mul_ps(e.out_open, sum, scale);
    if (e.residual != nullptr) {
      y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(lanes, e.residual + at));
    }
    // max returns its second operand if either is NaN, so NaN passes through.
    if (e.relu) y = _mm512_max_ps(_mm512_setzero_ps(), y);
    if (kFull) {
      _mm512_storeu_ps(e.out + at, y);
    } else {
      _mm512_mask_storeu_ps(e.out + at, lanes, y);
    }
  }
}

using TileFn = void (*)(const DepthwiseTile<float>&, int64_t);

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
  const TileFn* tiles = t.lanes == 16 ? tiles_of<true>(t) : tiles_of<false>(t);
  const int64_t count = (outputs + kMost - 1) / kMost;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = i * outputs / count;
    tiles[(i + 1) * outputs / count - first](t, first);
  }
}

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

const DepthwiseTileFn<float> kAvx512DepthwiseF32 = run;

}  // namespace ddi
#endif
