// Micro-kernels for AVX2 + FMA: a weight panel row is two registers, and a tile of 6 pixels x 1
// panel fills the 16 registers (12 accumulators, the row, one broadcast). There is no compress or
// expand instruction, so both are a lane permutation looked up by the eight bits of a mask.
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa_region.h"
#include "micro.h"

namespace ddi {
namespace {

constexpr int kHalf = 8;  // lanes of a register, half a panel row

// Lane permutations by mask: `pack` moves the chosen lanes to the front, `spread` moves the first
// lanes to the chosen places, -1 marking a lane that becomes zero.
struct Permutations {
  int8_t pack[256][kHalf];
  int8_t spread[256][kHalf];
};

constexpr Permutations make_permutations() {
  Permutations table = {};
  for (int mask = 0; mask < 256; ++mask) {
    int n = 0;
    for (int lane = 0; lane < kHalf; ++lane) {
      const bool chosen = (mask >> lane) & 1;
      table.spread[mask][lane] = static_cast<int8_t>(chosen ? n : -1);
      if (chosen) table.pack[mask][n++] = static_cast<int8_t>(lane);
    }
  }
  return table;
}

constexpr Permutations kPermutations = make_permutations();

// kLaneMask + 8 - n starts n lanes of ones followed by zeros.
constexpr int32_t kLaneMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};

}  // namespace
}  // namespace ddi

DDI_REGION_AVX2
namespace ddi {
namespace {

__m256i first_lanes(int64_t n) {
  const int64_t lanes = n >= kHalf ? kHalf : n < 0 ? 0 : n;
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLaneMask + kHalf - lanes));
}

__m256i lanes_of(const int8_t* entry) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(entry)));
}

__m256 pack(__m256 v, uint32_t mask) {
  return _mm256_permutevar8x32_ps(v, lanes_of(kPermutations.pack[mask]));
}

__m256 spread(__m256 v, uint32_t mask) {
  const __m256i lanes = lanes_of(kPermutations.spread[mask]);
  const __m256 closed = _mm256_castsi256_ps(_mm256_srai_epi32(lanes, 31));
  return _mm256_andnot_ps(closed, _mm256_permutevar8x32_ps(v, lanes));
}

// max returns its second operand if either is NaN, so NaN passes through.
__m256 activate(__m256 v, bool relu) { return relu ? _mm256_max_ps(_mm256_setzero_ps(), v) : v; }

void store_first(float* dst, int64_t n, __m256 v) {
  if (n >= kHalf) {
    _mm256_storeu_ps(dst, v);
  } else {
    _mm256_maskstore_ps(dst, first_lanes(n), v);
  }
}

__m256 load_first(const float* src, int64_t n) {
  return n >= kHalf ? _mm256_loadu_ps(src) : _mm256_maskload_ps(src, first_lanes(n));
}

template <int P>
DDI_INLINE void finish(const ConvTile<float>& t, __m256 (&acc)[P][2]) {
  constexpr int kFirst = (P + 1) / 2;
  DDI_UNROLL
  for (int p = 0; p < P; ++p) {
    const int run = p < kFirst ? 0 : 1;
    DDI_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int64_t at = (p - run * kFirst) * t.out_stride + t.out_at[0] + h * kHalf;
      const int64_t n = t.last_lanes - h * kHalf;
      __m256 v = _mm256_add_ps(acc[p][h], _mm256_loadu_ps(t.bias + h * kHalf));
      if (t.scale != nullptr) v = _mm256_mul_ps(v, _mm256_loadu_ps(t.scale + h * kHalf));
      if (t.residual[0] != nullptr) v = _mm256_add_ps(v, load_first(t.residual[run] + at, n));
      store_first(t.out[run] + at, n, activate(v, t.relu));
    }
  }
}

// S neighbouring activations, repeated over the lanes.
template <int S>
DDI_INLINE __m256 broadcast(const float* a) {
  if (S == 2) {
    return _mm256_castpd_ps(_mm256_broadcast_sd(reinterpret_cast<const double*>(a)));
  }
  if (S == 4) return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(a));
  return _mm256_broadcast_ss(a);
}

template <int P, int S, bool kListed>
void conv_tile_of(const ConvTile<float>& t) {
  constexpr int kFirst = (P + 1) / 2;
  __m256 acc[P][2];
  DDI_UNROLL
  for (int p = 0; p < P; ++p) acc[p][0] = acc[p][1] = _mm256_setzero_ps();
  const int64_t stride = t.pixel_stride;
  const int32_t* row = t.row;
  for (int64_t s = 0; s < t.segments; ++s) {
    const Segment& segment = t.segment[s];
    const float *a0 = t.in[0] + segment.offset, *a1 = t.in[1] + segment.offset;
    const float* w = t.weight[0] + segment.row * kLanes;
    for (int64_t c = segment.length; c > 0; --c, a0 += S, a1 += S) {
      if (kListed) w = t.weight[0] + static_cast<int64_t>(*row++) * kLanes;
      const __m256 low = _mm256_loadu_ps(w), high = _mm256_loadu_ps(w + kHalf);
      if (!kListed) w += kLanes;
      DDI_UNROLL
      for (int p = 0; p < P; ++p) {
        const __m256 x = broadcast<S>(p < kFirst ? a0 + p * stride : a1 + (p - kFirst) * stride);
        acc[p][0] = _mm256_fmadd_ps(x, low, acc[p][0]);
        acc[p][1] = _mm256_fmadd_ps(x, high, acc[p][1]);
      }
    }
  }
  finish<P>(t, acc);
}

using TileFn = void (*)(const ConvTile<float>&);

template <int S, bool L>
constexpr TileFn kTiles[7] = {nullptr,
                              conv_tile_of<1, S, L>,
                              conv_tile_of<2, S, L>,
                              conv_tile_of<3, S, L>,
                              conv_tile_of<4, S, L>,
                              conv_tile_of<5, S, L>,
                              conv_tile_of<6, S, L>};

void conv_tile(const ConvTile<float>& t, int pixels, int /*panels: always 1*/, int strips) {
  if (strips == 2) return kTiles<2, false>[pixels](t);
  if (strips == 4) return kTiles<4, false>[pixels](t);
  (t.row == nullptr ? kTiles<1, false> : kTiles<1, true>)[pixels](t);
}

// The lanes of half a compressed panel that come from half a packed panel.
struct HalfMove {
  const float* src;
  __m256i from;
  __m256 mask;
};

int split_moves(const PanelMove<float>* moves, int n_moves, int half, HalfMove* out) {
  int n = 0;
  for (int m = 0; m < n_moves; ++m) {
    for (int source = 0; source < 2; ++source) {
      alignas(32) int32_t from[kHalf] = {}, mask[kHalf] = {};
      bool any = false;
      for (int l = 0; l < kHalf; ++l) {
        const int lane = half * kHalf + l, column = moves[m].from[lane];
        if (((moves[m].mask >> lane) & 1u) == 0 || column / kHalf != source) continue;
        from[l] = column % kHalf;
        mask[l] = -1;
        any = true;
      }
      if (!any) continue;
      out[n++] = {moves[m].src + source * kHalf,
                  _mm256_load_si256(reinterpret_cast<const __m256i*>(from)),
                  _mm256_castsi256_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(mask)))};
    }
  }
  return n;
}

void compress_panel(const PanelMove<float>* moves, int n_moves, const int32_t* row, int64_t steps,
                    float* dst) {
  HalfMove halves[2][2 * kLanes];
  int count[2];
  for (int h = 0; h < 2; ++h) count[h] = split_moves(moves, n_moves, h, halves[h]);
  for (int64_t k = 0; k < steps; ++k, dst += kLanes) {
    const int64_t at = static_cast<int64_t>(row[k]) * kLanes;
    const int64_t later = static_cast<int64_t>(row[k + kPrefetchRows]) * kLanes;
    for (int m = 0; m < n_moves; ++m) _mm_prefetch(moves[m].src + later, _MM_HINT_T0);
    for (int h = 0; h < 2; ++h) {
      __m256 v = _mm256_setzero_ps();
      for (int m = 0; m < count[h]; ++m) {
        const HalfMove& move = halves[h][m];
        const __m256 w = _mm256_permutevar8x32_ps(_mm256_loadu_ps(move.src + at), move.from);
        v = _mm256_blendv_ps(v, w, move.mask);
      }
      _mm256_storeu_ps(dst + h * kHalf, v);
    }
  }
}

constexpr int64_t kPrefetchPixels = 16;

void compress_pixels(const float* src, int64_t pixel_stride, int64_t pixels, const ChannelSet& set,
                     float* dst) {
  const int64_t ahead = kPrefetchPixels * pixel_stride;
  for (int64_t p = 0; p < pixels; ++p, src += pixel_stride) {
    for (int64_t c = 0; c < set.channels; c += kHalf) {
      const uint32_t mask = (set.bits[c / kLanes] >> (c % kLanes)) & 0xffu;
      if (mask == 0) continue;
      _mm_prefetch(src + c + ahead, _MM_HINT_T0);
      // Whole-register stores: what one spills the next channels, pixel or row overwrites.
      _mm256_storeu_ps(dst, pack(load_first(src + c, set.channels - c), mask));
      dst += __builtin_popcount(mask);
    }
  }
}

// {a, b} -> a0 b0 a1 b1 ...
void zip(__m256 a, __m256 b, __m256 out[2]) {
  const __m256 low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
  out[0] = _mm256_permute2f128_ps(low, high, 0x20);
  out[1] = _mm256_permute2f128_ps(low, high, 0x31);
}

// {a, b} -> even elements of both, odd elements of both
void unzip(__m256 a, __m256 b, __m256 out[2]) {
  const __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
  const __m256d odd = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
  out[0] = _mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8));
  out[1] = _mm256_castpd_ps(_mm256_permute4x64_pd(odd, 0xd8));
}

void interleave(const float* src, int64_t src_stride, int strips, int64_t count, float* dst) {
  for (int64_t i = 0; i < count; i += kHalf, dst += kHalf * strips) {
    __m256 ac[2], bd[2], out[2];
    if (strips == 2) {
      zip(_mm256_loadu_ps(src + i), _mm256_loadu_ps(src + src_stride + i), ac);
      for (int h = 0; h < 2; ++h) _mm256_storeu_ps(dst + h * kHalf, ac[h]);
      continue;
    }
    zip(_mm256_loadu_ps(src + i), _mm256_loadu_ps(src + 2 * src_stride + i), ac);
    zip(_mm256_loadu_ps(src + src_stride + i), _mm256_loadu_ps(src + 3 * src_stride + i), bd);
    for (int h = 0; h < 2; ++h) {
      zip(ac[h], bd[h], out);
      _mm256_storeu_ps(dst + 2 * h * kHalf, out[0]);
      _mm256_storeu_ps(dst + (2 * h + 1) * kHalf, out[1]);
    }
  }
}

void deinterleave(const float* src, int strips, int64_t count, int64_t dst_stride, float* dst) {
  for (int64_t i = 0; i < count; i += kHalf, src += kHalf * strips) {
    __m256 ab[2], cd[2], out[2];
    unzip(_mm256_loadu_ps(src), _mm256_loadu_ps(src + kHalf), ab);
    if (strips == 2) {
      for (int h = 0; h < 2; ++h) _mm256_storeu_ps(dst + h * dst_stride + i, ab[h]);
      continue;
    }
    unzip(_mm256_loadu_ps(src + 2 * kHalf), _mm256_loadu_ps(src + 3 * kHalf), cd);
    for (int h = 0; h < 2; ++h) {
      unzip(ab[h], cd[h], out);
      _mm256_storeu_ps(dst + h * dst_stride + i, out[0]);
      _mm256_storeu_ps(dst + (h + 2) * dst_stride + i, out[1]);
    }
  }
}

void scatter_pixels(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                    int64_t dst_stride, float* dst) {
  for (int64_t p = 0; p < pixels; ++p, src += src_stride, dst += dst_stride) {
    const float* s = src;
    for (int64_t c = 0; c < set.channels; c += kHalf) {
      const uint32_t mask = (set.bits[c / kLanes] >> (c % kLanes)) & 0xffu;
      const __m256i lanes = lanes_of(kPermutations.spread[mask]);
      const __m256i open = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(-1));
      _mm256_maskstore_ps(dst + c, open, _mm256_permutevar8x32_ps(_mm256_loadu_ps(s), lanes));
      s += __builtin_popcount(mask);
    }
  }
}

void expand_pixels(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                   const float* residual, bool relu, int64_t dst_stride, float* dst) {
  for (int64_t p = 0; p < pixels; ++p, src += src_stride, dst += dst_stride) {
    const float* s = src;
    for (int64_t c = 0; c < set.channels; c += kHalf) {
      const uint32_t mask = (set.bits[c / kLanes] >> (c % kLanes)) & 0xffu;
      __m256 v = spread(_mm256_loadu_ps(s), mask);
      if (residual != nullptr) v = _mm256_add_ps(v, load_first(residual + c, set.channels - c));
      store_first(dst + c, set.channels - c, activate(v, relu));
      s += __builtin_popcount(mask);
    }
    if (residual != nullptr) residual += dst_stride;
  }
}

void fill_closed(int64_t pixels, const ChannelSet& set, const float* residual, bool relu,
                 int64_t dst_stride, float* dst) {
  for (int64_t p = 0; p < pixels; ++p, dst += dst_stride) {
    for (int64_t c = 0; c < set.channels; c += kHalf) {
      if (set.bits[c / kLanes] != 0) continue;
      const int64_t n = set.channels - c;
      const __m256 v = residual == nullptr ? _mm256_setzero_ps() : load_first(residual + c, n);
      store_first(dst + c, n, activate(v, relu));
    }
    if (residual != nullptr) residual += dst_stride;
  }
}

// r[i][j] -> r[j][i]: interleave elements, then pairs, then halves.
void transpose(__m256 r[kHalf]) {
  __m256 t[kHalf];
  DDI_UNROLL
  for (int i = 0; i < kHalf; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  DDI_UNROLL
  for (int i = 0; i < kHalf; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  DDI_UNROLL
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
  DDI_UNROLL
  for (int i = 0; i < kHalf; ++i) r[i] = t[i];
}

void gather_planes(const float* src, int64_t channel_stride, int64_t pixels, const ChannelSet& set,
                   float* dst) {
  for (int64_t p = 0; p < pixels; p += kHalf) {
    for (int64_t i = 0; i < set.open; i += kHalf) {
      __m256 r[kHalf];
      for (int k = 0; k < kHalf; ++k) {
        r[k] = i + k < set.open
                   ? load_first(src + set.index[i + k] * channel_stride + p, pixels - p)
                   : _mm256_setzero_ps();
      }
      transpose(r);
      for (int k = 0; k < kHalf && p + k < pixels; ++k) {
        store_first(dst + (p + k) * set.open + i, set.open - i, r[k]);
      }
    }
  }
}

void affine_relu(int64_t pixels, int64_t channels, const float* scale, const float* shift,
                 float* data) {
  for (int64_t c = 0; c < channels; c += kHalf) {
    const int64_t n = channels - c;
    const __m256 a = load_first(scale + c, n), b = load_first(shift + c, n);
    for (int64_t p = 0; p < pixels; ++p) {
      float* at = data + p * channels + c;
      store_first(at, n, activate(_mm256_fmadd_ps(load_first(at, n), a, b), true));
    }
  }
}

void scatter_planes(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                    int64_t channel_stride, const float* residual, bool relu, float* dst) {
  for (int64_t p = 0; p < pixels; p += kHalf) {
    for (int64_t i = 0; i < set.open; i += kHalf) {
      __m256 r[kHalf];
      for (int k = 0; k < kHalf; ++k) {
        r[k] =
            p + k < pixels ? _mm256_loadu_ps(src + (p + k) * src_stride + i) : _mm256_setzero_ps();
      }
      transpose(r);
      for (int k = 0; k < kHalf && i + k < set.open; ++k) {
        const int64_t at = set.index[i + k] * channel_stride + p;
        __m256 v = r[k];
        if (residual != nullptr) v = _mm256_add_ps(v, load_first(residual + at, pixels - p));
        store_first(dst + at, pixels - p, activate(v, relu));
      }
    }
  }
}

void sum_pixels(const float* src, int64_t pixel_stride, int64_t pixels, int64_t channels,
                float* sum) {
  for (int64_t c = 0; c < channels; c += kHalf) {
    const int64_t n = channels - c;
    __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
    int64_t p = 0;
    for (; p + 1 < pixels; p += 2) {
      even = _mm256_add_ps(even, load_first(src + p * pixel_stride + c, n));
      odd = _mm256_add_ps(odd, load_first(src + (p + 1) * pixel_stride + c, n));
    }
    if (p < pixels) even = _mm256_add_ps(even, load_first(src + p * pixel_stride + c, n));
    store_first(sum + c, n, _mm256_add_ps(even, odd));
  }
}

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

const Micro<float> kAvx2F32 = {
    {0, 6, 0, 0},   4,           conv_tile,      compress_panel, compress_pixels,
    gather_planes,  affine_relu, interleave,     deinterleave,   expand_pixels,
    scatter_pixels, fill_closed, scatter_planes, sum_pixels};

}  // namespace ddi
#endif
