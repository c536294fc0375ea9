// Micro-kernels for AVX-512 (F, BW, DQ, VL): a weight panel row is one register, and a register
// tile of pixels x panels keeps up to 28 accumulators busy while each weight row is loaded once per
// tile. Masks become hardware masks: compress and expand are single instructions, and masked loads
// touch open channels only, so closed ones may hold anything.
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa_region.h"
#include "micro.h"

DDI_REGION_AVX512
namespace ddi {
namespace {

__mmask16 first_lanes(int64_t n) {
  return n >= kLanes ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << n) - 1u);
}

// max returns its second operand if either is NaN, so NaN passes through.
__m512 activate(__m512 v, bool relu) { return relu ? _mm512_max_ps(_mm512_setzero_ps(), v) : v; }

__m512 finish(const ConvTile<float>& t, __m512 v, int panel, int64_t at, __mmask16 lanes) {
  v = _mm512_add_ps(v, _mm512_loadu_ps(t.bias + panel * kLanes));
  if (t.scale != nullptr) v = _mm512_mul_ps(v, _mm512_loadu_ps(t.scale + panel * kLanes));
  if (t.residual != nullptr) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(lanes, t.residual + at));
  return activate(v, t.relu);
}

template <int P, int V>
void conv_tile_of(const ConvTile<float>& t) {
  __m512 acc[P][V];
  DDI_UNROLL
  for (int p = 0; p < P; ++p) {
    DDI_UNROLL
    for (int v = 0; v < V; ++v) acc[p][v] = _mm512_setzero_ps();
  }
  const float* w = t.weight;
  const int64_t stride = t.pixel_stride, panel_stride = t.panel_stride;
  for (int64_t s = 0; s < t.segments; ++s) {
    const float* a = t.in + t.offset[s];
    for (int64_t c = 0; c < t.segment_length; ++c, ++a, w += kLanes) {
      __m512 row[V];
      DDI_UNROLL
      for (int v = 0; v < V; ++v) row[v] = _mm512_loadu_ps(w + v * panel_stride);
      DDI_UNROLL
      for (int p = 0; p < P; ++p) {
        const __m512 x = _mm512_set1_ps(a[p * stride]);
        DDI_UNROLL
        for (int v = 0; v < V; ++v) acc[p][v] = _mm512_fmadd_ps(x, row[v], acc[p][v]);
      }
    }
  }
  DDI_UNROLL
  for (int p = 0; p < P; ++p) {
    DDI_UNROLL
    for (int v = 0; v < V; ++v) {
      const int64_t at = p * t.out_stride + v * kLanes;
      const __mmask16 lanes = first_lanes(v == V - 1 ? t.last_lanes : kLanes);
      _mm512_mask_storeu_ps(t.out + at, lanes, finish(t, acc[p][v], v, at, lanes));
    }
  }
}

using TileFn = void (*)(const ConvTile<float>&);

// 14 x 1, 12 x 2 and 6 x 4 leave room for the weight rows and one broadcast among 32 registers.
constexpr TileFn kTiles1[] = {nullptr,
                              conv_tile_of<1, 1>,
                              conv_tile_of<2, 1>,
                              conv_tile_of<3, 1>,
                              conv_tile_of<4, 1>,
                              conv_tile_of<5, 1>,
                              conv_tile_of<6, 1>,
                              conv_tile_of<7, 1>,
                              conv_tile_of<8, 1>,
                              conv_tile_of<9, 1>,
                              conv_tile_of<10, 1>,
                              conv_tile_of<11, 1>,
                              conv_tile_of<12, 1>,
                              conv_tile_of<13, 1>,
                              conv_tile_of<14, 1>};
constexpr TileFn kTiles2[] = {nullptr,
                              conv_tile_of<1, 2>,
                              conv_tile_of<2, 2>,
                              conv_tile_of<3, 2>,
                              conv_tile_of<4, 2>,
                              conv_tile_of<5, 2>,
                              conv_tile_of<6, 2>,
                              conv_tile_of<7, 2>,
                              conv_tile_of<8, 2>,
                              conv_tile_of<9, 2>,
                              conv_tile_of<10, 2>,
                              conv_tile_of<11, 2>,
                              conv_tile_of<12, 2>};
constexpr TileFn kTiles4[] = {nullptr,
                              conv_tile_of<1, 4>,
                              conv_tile_of<2, 4>,
                              conv_tile_of<3, 4>,
                              conv_tile_of<4, 4>,
                              conv_tile_of<5, 4>,
                              conv_tile_of<6, 4>};

void conv_tile(const ConvTile<float>& t, int pixels, int panels) {
  (panels == 1 ? kTiles1 : panels == 2 ? kTiles2 : kTiles4)[pixels](t);
}

// Rows of open inputs are too irregular a stream for the hardware to fetch ahead by itself.
constexpr int64_t kPrefetchRows = 16;

void compress_panel(const PanelMove<float>* moves, int n_moves, int64_t taps, const ChannelSet& in,
                    float* dst) {
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t i = 0; i < in.open; ++i, dst += kLanes) {
      const int64_t row = (tap * in.channels + in.index[i]) * kLanes;
      const int64_t later = i + kPrefetchRows < in.open ? i + kPrefetchRows : i;
      const int64_t prefetch = (tap * in.channels + in.index[later]) * kLanes;
      // Whole-register stores: what one spills past its columns the next move or row overwrites.
      for (int m = 0; m < n_moves; ++m) {
        _mm_prefetch(moves[m].src + prefetch, _MM_HINT_T0);
        const __mmask16 mask = static_cast<__mmask16>(moves[m].mask);
        const __m512 v = _mm512_loadu_ps(moves[m].src + row);
        _mm512_storeu_ps(dst + moves[m].lane, _mm512_maskz_compress_ps(mask, v));
      }
    }
  }
}

void compress_pixels(const float* src, int64_t pixel_stride, int64_t pixels, const ChannelSet& set,
                     float* dst) {
  const int64_t words = (set.channels + kLanes - 1) / kLanes;
  for (int64_t p = 0; p < pixels; ++p, src += pixel_stride) {
    for (int64_t k = 0; k < words; ++k) {
      const __mmask16 mask = set.bits[k];
      if (mask == 0) continue;
      const int n = __builtin_popcount(mask);
      const __m512 v = _mm512_maskz_loadu_ps(mask, src + k * kLanes);
      _mm512_mask_storeu_ps(dst, first_lanes(n), _mm512_maskz_compress_ps(mask, v));
      dst += n;
    }
  }
}

void expand_pixels(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                   const float* residual, bool relu, float* dst) {
  for (int64_t p = 0; p < pixels; ++p, src += src_stride) {
    const float* s = src;
    for (int64_t c = 0; c < set.channels; c += kLanes) {
      const __mmask16 lanes = first_lanes(set.channels - c);
      const __mmask16 mask = set.bits[c / kLanes];
      const int n = __builtin_popcount(mask);
      __m512 v = _mm512_maskz_expand_ps(mask, _mm512_maskz_loadu_ps(first_lanes(n), s));
      if (residual != nullptr) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(lanes, residual + c));
      _mm512_mask_storeu_ps(dst + c, lanes, activate(v, relu));
      s += n;
    }
    dst += set.channels;
    if (residual != nullptr) residual += set.channels;
  }
}

// r[i][j] -> r[j][i]: interleave elements, then pairs, then 128-bit quarters.
void transpose(__m512 r[kLanes]) {
  __m512 t[kLanes];
  DDI_UNROLL
  for (int i = 0; i < kLanes; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  DDI_UNROLL
  for (int i = 0; i < kLanes; i += 4) {
    const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
    const __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
    r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  // Now quarter q of r[4 g + k] holds column 4 q + k of rows 4 g ... 4 g + 3.
  DDI_UNROLL
  for (int k = 0; k < 4; ++k) {
    t[k] = _mm512_shuffle_f32x4(r[k], r[4 + k], 0x88);
    t[4 + k] = _mm512_shuffle_f32x4(r[k], r[4 + k], 0xdd);
    t[8 + k] = _mm512_shuffle_f32x4(r[8 + k], r[12 + k], 0x88);
    t[12 + k] = _mm512_shuffle_f32x4(r[8 + k], r[12 + k], 0xdd);
  }
  DDI_UNROLL
  for (int k = 0; k < 4; ++k) {
    r[k] = _mm512_shuffle_f32x4(t[k], t[8 + k], 0x88);
    r[4 + k] = _mm512_shuffle_f32x4(t[4 + k], t[12 + k], 0x88);
    r[8 + k] = _mm512_shuffle_f32x4(t[k], t[8 + k], 0xdd);
    r[12 + k] = _mm512_shuffle_f32x4(t[4 + k], t[12 + k], 0xdd);
  }
}

void gather_planes(const float* src, int64_t channel_stride, int64_t pixels, const ChannelSet& set,
                   float* dst) {
  for (int64_t p = 0; p < pixels; p += kLanes) {
    const __mmask16 pixel_lanes = first_lanes(pixels - p);
    for (int64_t i = 0; i < set.open; i += kLanes) {
      __m512 r[kLanes];
      for (int k = 0; k < kLanes; ++k) {
        r[k] = i + k < set.open
                   ? _mm512_maskz_loadu_ps(pixel_lanes, src + set.index[i + k] * channel_stride + p)
                   : _mm512_setzero_ps();
      }
      transpose(r);
      const __mmask16 channel_lanes = first_lanes(set.open - i);
      for (int k = 0; k < kLanes && p + k < pixels; ++k) {
        _mm512_mask_storeu_ps(dst + (p + k) * set.open + i, channel_lanes, r[k]);
      }
    }
  }
}

void scatter_planes(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                    int64_t channel_stride, const float* residual, bool relu, float* dst) {
  for (int64_t p = 0; p < pixels; p += kLanes) {
    const __mmask16 pixel_lanes = first_lanes(pixels - p);
    for (int64_t i = 0; i < set.open; i += kLanes) {
      __m512 r[kLanes];
      for (int k = 0; k < kLanes; ++k) {
        r[k] =
            p + k < pixels ? _mm512_loadu_ps(src + (p + k) * src_stride + i) : _mm512_setzero_ps();
      }
      transpose(r);
      for (int k = 0; k < kLanes && i + k < set.open; ++k) {
        const int64_t at = set.index[i + k] * channel_stride + p;
        __m512 v = r[k];
        if (residual != nullptr) {
          v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(pixel_lanes, residual + at));
        }
        _mm512_mask_storeu_ps(dst + at, pixel_lanes, activate(v, relu));
      }
    }
  }
}

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

const Micro<float> kAvx512F32 = {{0, 14, 12, 0, 6}, conv_tile,     compress_panel, compress_pixels,
                                 gather_planes,     expand_pixels, scatter_planes};

}  // namespace ddi
#endif
