// The depthwise micro-kernel for AVX-512: a tile of up to 12 outputs loads each weight once; inputs
// are memory operands of the multiply-adds, which is what its speed is bound by.
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa_region.h"
#include "micro_depthwise.h"

DDI_REGION_AVX512
namespace ddi {
namespace {

constexpr int kMost = 12;

template <int P, bool kFull>
void tile_of(const DepthwiseTile<float>& t, int64_t first) {
  const __mmask16 lanes = kFull ? 0xffff : static_cast<__mmask16>((1u << t.lanes) - 1u);
  const float* in = t.in + first * t.in_stride;
  __m512 acc[P];
  DDI_UNROLL
  for (int p = 0; p < P; ++p) acc[p] = _mm512_setzero_ps();
  for (int64_t i = 0; i < t.taps; ++i) {
    const __m512 w = _mm512_loadu_ps(t.weight + t.tap[i].weight);
    const float* x = in + t.tap[i].in;
    DDI_UNROLL
    for (int p = 0; p < P; ++p, x += t.in_stride) {
      const __m512 v = kFull ? _mm512_loadu_ps(x) : _mm512_maskz_loadu_ps(lanes, x);
      acc[p] = _mm512_fmadd_ps(v, w, acc[p]);
    }
  }
  const __m512 bias = _mm512_loadu_ps(t.bias);
  DDI_UNROLL
  for (int p = 0; p < P; ++p) {
    const int64_t at = (first + p) * t.out_stride;
    __m512 y = _mm512_add_ps(_mm512_maskz_mov_ps(t.in_open, acc[p]), bias);
    if (t.scale != nullptr) y = _mm512_mul_ps(y, _mm512_loadu_ps(t.scale));
    y = _mm512_maskz_mov_ps(t.out_open, y);
    if (t.residual != nullptr) {
      y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(lanes, t.residual + at));
    }
    // max returns its second operand if either is NaN, so NaN passes through.
    if (t.relu) y = _mm512_max_ps(_mm512_setzero_ps(), y);
    if (kFull) {
      _mm512_storeu_ps(t.out + at, y);
    } else {
      _mm512_mask_storeu_ps(t.out + at, lanes, y);
    }
  }
}

using TileFn = void (*)(const DepthwiseTile<float>&, int64_t);

template <bool F>
constexpr TileFn kTiles[kMost + 1] = {nullptr,       tile_of<1, F>, tile_of<2, F>,  tile_of<3, F>,
                                      tile_of<4, F>, tile_of<5, F>, tile_of<6, F>,  tile_of<7, F>,
                                      tile_of<8, F>, tile_of<9, F>, tile_of<10, F>, tile_of<11, F>,
                                      tile_of<12, F>};

// Tiles of a run differ by at most one output.
void run(const DepthwiseTile<float>& t, int64_t outputs) {
  const TileFn* tiles = t.lanes == 16 ? kTiles<true> : kTiles<false>;
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

const DepthwiseTileFn<float> kDepthwiseAvx512F32 = run;

}  // namespace ddi
#endif
