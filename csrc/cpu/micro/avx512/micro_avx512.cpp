// Micro-kernels for AVX-512 (F, BW, DQ, VL): a weight panel row is one register, and a register
// tile of pixels x panels keeps up to 28 accumulators busy while each weight row is loaded once per
// tile. Half precision is converted where pixels are moved, and computed like float.
#if defined(__x86_64__)
#include <immintrin.h>

#include "base/isa_region.h"
#include "micro/micro.h"

DDI_REGION_AVX512
#include "micro_avx512_lanes.h"
#include "micro_avx512_pixels.h"
#include "micro_avx512_tile.h"

namespace ddi {
namespace {

struct MultiplyFloats {
  static constexpr int kMaxStrips = 4;
  static constexpr bool kFetches = true;
  using Type = float;
  using Sum = __m512;
  using Weights = __m512;
  using Inputs = __m512;
  static DDI_INLINE Sum start(const ConvTile<float>&, int) { return _mm512_setzero_ps(); }
  static DDI_INLINE Weights weights(const float* row) { return _mm512_loadu_ps(row); }
  static DDI_INLINE Inputs inputs(__m512 x) { return x; }
  static DDI_INLINE Sum multiply_add(Sum sum, Inputs x, Weights w) {
    return _mm512_fmadd_ps(x, w, sum);
  }
  static DDI_INLINE __m512 value(const ConvTile<float>&, int, Sum sum) { return sum; }
};

// N packed panels with their lane permutations in registers.
template <int N>
void compress_panel_of(const PanelMove<float>* moves, const int32_t* row, int64_t steps,
                       float* dst) {
  // Copies: a store might change what `moves` points to, for all that the compiler knows.
  const float* src[N];
  __mmask16 mask[N];
  __m512i from[N];
  DDI_UNROLL
  for (int m = 0; m < N; ++m) {
    src[m] = moves[m].src;
    mask[m] = static_cast<__mmask16>(moves[m].mask);
    from[m] = _mm512_loadu_si512(moves[m].from);
  }
  for (int64_t k = 0; k < steps; ++k, dst += kLanes) {
    const int64_t at = static_cast<int64_t>(row[k]) * kLanes;
    const int64_t later = static_cast<int64_t>(row[k + kPrefetchRows]) * kLanes;
    __m512 v = _mm512_setzero_ps();
    DDI_UNROLL
    for (int m = 0; m < N; ++m) {
      _mm_prefetch(src[m] + later, _MM_HINT_T0);
      v = _mm512_mask_permutexvar_ps(v, mask[m], from[m], _mm512_loadu_ps(src[m] + at));
    }
    _mm512_storeu_ps(dst, v);
  }
}

void compress_panel(const PanelMove<float>* moves, int n_moves, const int32_t* row, int64_t steps,
                    float* dst) {
  if (n_moves == 1) return compress_panel_of<1>(moves, row, steps, dst);
  if (n_moves == 2) return compress_panel_of<2>(moves, row, steps, dst);
  if (n_moves == 3) return compress_panel_of<3>(moves, row, steps, dst);
  if (n_moves == 4) return compress_panel_of<4>(moves, row, steps, dst);
  for (int64_t k = 0; k < steps; ++k, dst += kLanes) {
    const int64_t at = static_cast<int64_t>(row[k]) * kLanes;
    const int64_t later = static_cast<int64_t>(row[k + kPrefetchRows]) * kLanes;
    __m512 v = _mm512_setzero_ps();
    for (int m = 0; m < n_moves; ++m) {
      _mm_prefetch(moves[m].src + later, _MM_HINT_T0);
      v = _mm512_mask_permutexvar_ps(v, static_cast<__mmask16>(moves[m].mask),
                                     _mm512_loadu_si512(moves[m].from),
                                     _mm512_loadu_ps(moves[m].src + at));
    }
    _mm512_storeu_ps(dst, v);
  }
}

void affine_relu(int64_t pixels, int64_t channels, const float* scale, const float* shift,
                 float* data) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const __mmask16 lanes = first_lanes(channels - c);
    const __m512 a = load_lanes(scale + c, lanes), b = load_lanes(shift + c, lanes);
    for (int64_t p = 0; p < pixels; ++p) {
      float* at = data + p * channels + c;
      store_lanes(at, lanes, activate(_mm512_fmadd_ps(load_lanes(at, lanes), a, b), true));
    }
  }
}

void scatter_pixels(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                    int64_t dst_stride, float* dst) {
  Words<Spread> w;
  for (int64_t k = 0, open = 0; open < set.open;) {
    next_words(set, false, &k, &open, &w);
    for (int64_t p = 0; p < pixels; ++p) {
      for (int i = 0; i < w.count; ++i) {
        const __m512 compact = _mm512_loadu_ps(src + p * src_stride + w.at[i]);
        store_lanes(dst + p * dst_stride + w.channel[i], w.mask[i],
                    _mm512_permutexvar_ps(w.from[i], compact));
      }
    }
  }
}

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

const Micro<float> kAvx512F32 = {{0, 16, 14, 9},
                                 4,
                                 conv_tile<MultiplyFloats>,
                                 compress_panel,
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

const Micro<half> kAvx512F16 = {{0, 16, 14, 9},
                                4,
                                conv_tile<MultiplyFloats>,
                                compress_panel,
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
