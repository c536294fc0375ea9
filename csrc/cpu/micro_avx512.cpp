// Micro-kernels for AVX-512 (F, BW, DQ, VL): a weight panel row is one register, and a register
// tile of pixels x panels keeps up to 28 accumulators busy while each weight row is loaded once per
// tile. Masks become hardware masks: compress, expand and permute are single instructions.
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

__m512 load_lanes(const float* src, __mmask16 lanes) {
  return lanes == 0xffff ? _mm512_loadu_ps(src) : _mm512_maskz_loadu_ps(lanes, src);
}

// Masked stores are slow on some machines, and masked loads keep the hardware from fetching ahead:
// both are used at the ends of rows only.
void store_lanes(float* dst, __mmask16 lanes, __m512 v) {
  if (lanes == 0xffff) {
    _mm512_storeu_ps(dst, v);
  } else {
    _mm512_mask_storeu_ps(dst, lanes, v);
  }
}

template <int P, int V>
DDI_INLINE void finish(const ConvTile<float>& t, __m512 (&acc)[P][V]) {
  constexpr int kFirst = (P + 1) / 2;
  DDI_UNROLL
  for (int v = 0; v < V; ++v) {
    const __mmask16 lanes = first_lanes(v == V - 1 ? t.last_lanes : kLanes);
    const __m512 bias = _mm512_loadu_ps(t.bias + v * kLanes);
    DDI_UNROLL
    for (int p = 0; p < P; ++p) {
      const int run = p < kFirst ? 0 : 1;
      const int64_t at = (p - run * kFirst) * t.out_stride + t.out_at[v];
      __m512 y = _mm512_add_ps(acc[p][v], bias);
      if (t.scale != nullptr) y = _mm512_mul_ps(y, _mm512_loadu_ps(t.scale + v * kLanes));
      if (t.residual[0] != nullptr) y = _mm512_add_ps(y, load_lanes(t.residual[run] + at, lanes));
      store_lanes(t.out[run] + at, lanes, activate(y, t.relu));
    }
  }
}

// S neighbouring activations, repeated over the lanes.
template <int S>
DDI_INLINE __m512 broadcast(const float* a) {
  if (S == 2) {
    return _mm512_castpd_ps(_mm512_set1_pd(*reinterpret_cast<const double*>(a)));
  }
  if (S == 4) return _mm512_broadcast_f32x4(_mm_loadu_ps(a));
  return _mm512_set1_ps(*a);
}

// How a tile finds its weights, and whether it fetches others meanwhile.
enum Walk { kPlain, kAhead, kListed };

template <int P, int V, int S, Walk W>
void conv_tile_of(const ConvTile<float>& t) {
  constexpr int kFirst = (P + 1) / 2;
  __m512 acc[P][V];
  DDI_UNROLL
  for (int p = 0; p < P; ++p) {
    DDI_UNROLL
    for (int v = 0; v < V; ++v) acc[p][v] = _mm512_setzero_ps();
  }
  const int64_t stride = t.pixel_stride;
  const int32_t *row = t.row, *ahead_row = t.ahead_row;
  for (int64_t s = 0; s < t.segments; ++s) {
    const Segment& segment = t.segment[s];
    const float *a0 = t.in[0] + segment.offset, *a1 = t.in[1] + segment.offset;
    int64_t at = segment.row * kLanes;
    for (int64_t c = segment.length; c > 0; --c, a0 += S, a1 += S) {
      if (W == kListed) at = static_cast<int64_t>(*row++) * kLanes;
      if (W != kPlain) {
        _mm_prefetch(t.ahead + static_cast<int64_t>(*ahead_row++) * kLanes, _MM_HINT_T1);
      }
      __m512 w[V];
      DDI_UNROLL
      for (int v = 0; v < V; ++v) w[v] = _mm512_loadu_ps(t.weight[v] + at);
      if (W != kListed) at += kLanes;
      DDI_UNROLL
      for (int p = 0; p < P; ++p) {
        const __m512 x = broadcast<S>(p < kFirst ? a0 + p * stride : a1 + (p - kFirst) * stride);
        DDI_UNROLL
        for (int v = 0; v < V; ++v) acc[p][v] = _mm512_fmadd_ps(x, w[v], acc[p][v]);
      }
    }
  }
  finish<P, V>(t, acc);
}

using TileFn = void (*)(const ConvTile<float>&);

// 16 x 1, 14 x 2 and 9 x 3 leave room for the weight rows and one broadcast among 32 registers.
template <int S, Walk W>
constexpr TileFn kTiles[kMaxPanels + 1][17] = {
    {},
    {nullptr, conv_tile_of<1, 1, S, W>, conv_tile_of<2, 1, S, W>, conv_tile_of<3, 1, S, W>,
     conv_tile_of<4, 1, S, W>, conv_tile_of<5, 1, S, W>, conv_tile_of<6, 1, S, W>,
     conv_tile_of<7, 1, S, W>, conv_tile_of<8, 1, S, W>, conv_tile_of<9, 1, S, W>,
     conv_tile_of<10, 1, S, W>, conv_tile_of<11, 1, S, W>, conv_tile_of<12, 1, S, W>,
     conv_tile_of<13, 1, S, W>, conv_tile_of<14, 1, S, W>, conv_tile_of<15, 1, S, W>,
     conv_tile_of<16, 1, S, W>},
    {nullptr, conv_tile_of<1, 2, S, W>, conv_tile_of<2, 2, S, W>, conv_tile_of<3, 2, S, W>,
     conv_tile_of<4, 2, S, W>, conv_tile_of<5, 2, S, W>, conv_tile_of<6, 2, S, W>,
     conv_tile_of<7, 2, S, W>, conv_tile_of<8, 2, S, W>, conv_tile_of<9, 2, S, W>,
     conv_tile_of<10, 2, S, W>, conv_tile_of<11, 2, S, W>, conv_tile_of<12, 2, S, W>,
     conv_tile_of<13, 2, S, W>, conv_tile_of<14, 2, S, W>},
    {nullptr, conv_tile_of<1, 3, S, W>, conv_tile_of<2, 3, S, W>, conv_tile_of<3, 3, S, W>,
     conv_tile_of<4, 3, S, W>, conv_tile_of<5, 3, S, W>, conv_tile_of<6, 3, S, W>,
     conv_tile_of<7, 3, S, W>, conv_tile_of<8, 3, S, W>, conv_tile_of<9, 3, S, W>}};

void conv_tile(const ConvTile<float>& t, int pixels, int panels, int strips) {
  if (strips == 2) return kTiles<2, kPlain>[panels][pixels](t);
  if (strips == 4) return kTiles<4, kPlain>[panels][pixels](t);
  if (t.row != nullptr) return kTiles<1, kListed>[panels][pixels](t);
  const bool ahead = t.ahead != nullptr && panels > 1;
  (ahead ? kTiles<1, kAhead> : kTiles<1, kPlain>)[panels][pixels](t);
}

// Up to N packed panels with their lane permutations in registers.
template <int N>
void compress_panel_of(const PanelMove<float>* moves, const int32_t* row, int64_t steps,
                       float* dst) {
  __m512i from[N];
  DDI_UNROLL
  for (int m = 0; m < N; ++m) from[m] = _mm512_loadu_si512(moves[m].from);
  for (int64_t k = 0; k < steps; ++k, dst += kLanes) {
    const int64_t at = static_cast<int64_t>(row[k]) * kLanes;
    const int64_t later = static_cast<int64_t>(row[k + kPrefetchRows]) * kLanes;
    __m512 v = _mm512_setzero_ps();
    DDI_UNROLL
    for (int m = 0; m < N; ++m) {
      _mm_prefetch(moves[m].src + later, _MM_HINT_T0);
      v = _mm512_mask_permutexvar_ps(v, static_cast<__mmask16>(moves[m].mask), from[m],
                                     _mm512_loadu_ps(moves[m].src + at));
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

// Words of a channel set that have open channels, a few at a time, with what moves them between a
// compact and a full pixel.
constexpr int kWords = 4;

struct Words {
  int count;
  int64_t channel[kWords];  // of the full pixel
  int64_t at[kWords];       // in the compact pixel
  __mmask16 mask[kWords];   // open channels
};

// The next words from word *k on, of which *open channels are already done.
Words next_words(const ChannelSet& set, int64_t* k, int64_t* open) {
  Words w = {};
  const int64_t words = (set.channels + kLanes - 1) / kLanes;
  for (; *k < words && w.count < kWords; ++*k) {
    const __mmask16 mask = set.bits[*k];
    if (mask == 0) continue;
    w.channel[w.count] = *k * kLanes;
    w.at[w.count] = *open;
    w.mask[w.count++] = mask;
    *open += __builtin_popcount(mask);
  }
  return w;
}

constexpr int64_t kPrefetchPixels = 16;

// Lane permutations that compress: a permutation is one operation where a compression is several.
__m512i packing(__mmask16 mask) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_maskz_compress_epi32(mask, lane);
}

__m512i unpacking(__mmask16 mask) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_maskz_expand_epi32(mask, lane);
}

// Whole-register stores in the first pass over the pixels: what one spills the next word, pass or
// pixel overwrites. Later passes must not reach into the next pixel.
template <int N>
void compress_words(const float* src, int64_t pixel_stride, int64_t pixels, const ChannelSet& set,
                    const Words& w, bool first_pass, float* dst) {
  __m512i from[N];
  __mmask16 store[N];
  for (int i = 0; i < N; ++i) {
    from[i] = packing(w.mask[i]);
    store[i] = first_pass ? static_cast<__mmask16>(0xffff) : first_lanes(set.open - w.at[i]);
  }
  // Only the last word can be short.
  const __mmask16 tail = first_lanes(set.channels - w.channel[N - 1]);
  const int64_t ahead = kPrefetchPixels * pixel_stride;
  for (int64_t p = 0; p < pixels; ++p, src += pixel_stride, dst += set.open) {
    DDI_UNROLL
    for (int i = 0; i < N; ++i) {
      const float* s = src + w.channel[i];
      _mm_prefetch(s + ahead, _MM_HINT_T0);
      const __m512 v = i == N - 1 ? load_lanes(s, tail) : _mm512_loadu_ps(s);
      store_lanes(dst + w.at[i], store[i], _mm512_permutexvar_ps(from[i], v));
    }
  }
}

void compress_pixels(const float* src, int64_t pixel_stride, int64_t pixels, const ChannelSet& set,
                     float* dst) {
  constexpr decltype(&compress_words<1>) kByCount[] = {
      nullptr, compress_words<1>, compress_words<2>, compress_words<3>, compress_words<4>};
  int64_t k = 0, open = 0;
  while (open < set.open) {
    const bool first_pass = open == 0;
    const Words w = next_words(set, &k, &open);
    kByCount[w.count](src, pixel_stride, pixels, set, w, first_pass, dst);
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

void interleave(const float* src, int64_t src_stride, int strips, int64_t count, float* dst) {
  const __m512i low2 = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high2 = _mm512_add_epi32(low2, _mm512_set1_epi32(8));
  for (int64_t i = 0; i < count; i += kLanes, dst += kLanes * strips) {
    const __m512 a = _mm512_loadu_ps(src + i), b = _mm512_loadu_ps(src + src_stride + i);
    if (strips == 2) {
      _mm512_storeu_ps(dst, _mm512_permutex2var_ps(a, low2, b));
      _mm512_storeu_ps(dst + kLanes, _mm512_permutex2var_ps(a, high2, b));
      continue;
    }
    const __m512 c = _mm512_loadu_ps(src + 2 * src_stride + i);
    const __m512 d = _mm512_loadu_ps(src + 3 * src_stride + i);
    // First a with c and b with d, then the results with each other.
    const __m512 ac[2] = {_mm512_permutex2var_ps(a, low2, c), _mm512_permutex2var_ps(a, high2, c)};
    const __m512 bd[2] = {_mm512_permutex2var_ps(b, low2, d), _mm512_permutex2var_ps(b, high2, d)};
    for (int h = 0; h < 2; ++h) {
      _mm512_storeu_ps(dst + 2 * h * kLanes, _mm512_permutex2var_ps(ac[h], low2, bd[h]));
      _mm512_storeu_ps(dst + (2 * h + 1) * kLanes, _mm512_permutex2var_ps(ac[h], high2, bd[h]));
    }
  }
}

void deinterleave(const float* src, int strips, int64_t count, int64_t dst_stride, float* dst) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (int64_t i = 0; i < count; i += kLanes, src += kLanes * strips) {
    const __m512 a = _mm512_loadu_ps(src), b = _mm512_loadu_ps(src + kLanes);
    const __m512 ab[2] = {_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b)};
    if (strips == 2) {
      _mm512_storeu_ps(dst + i, ab[0]);
      _mm512_storeu_ps(dst + dst_stride + i, ab[1]);
      continue;
    }
    const __m512 c = _mm512_loadu_ps(src + 2 * kLanes), d = _mm512_loadu_ps(src + 3 * kLanes);
    const __m512 cd[2] = {_mm512_permutex2var_ps(c, even, d), _mm512_permutex2var_ps(c, odd, d)};
    for (int h = 0; h < 2; ++h) {
      _mm512_storeu_ps(dst + h * dst_stride + i, _mm512_permutex2var_ps(ab[h], even, cd[h]));
      _mm512_storeu_ps(dst + (h + 2) * dst_stride + i, _mm512_permutex2var_ps(ab[h], odd, cd[h]));
    }
  }
}

template <int N, bool kResidual>
void expand_words(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                  const Words& w, const float* residual, bool relu, int64_t dst_stride,
                  float* dst) {
  __m512i from[N];
  for (int i = 0; i < N; ++i) from[i] = unpacking(w.mask[i]);
  // What the activation takes the maximum with; of NaN and NaN the second is the value itself.
  const __m512 floor = _mm512_set1_ps(relu ? 0.0f : -__builtin_inff());
  // Only the last word can be short.
  const __mmask16 tail = first_lanes(set.channels - w.channel[N - 1]);
  for (int64_t p = 0; p < pixels; ++p, src += src_stride, dst += dst_stride) {
    DDI_UNROLL
    for (int i = 0; i < N; ++i) {
      const __mmask16 lanes = i == N - 1 ? tail : static_cast<__mmask16>(0xffff);
      const int64_t c = w.channel[i];
      __m512 v = _mm512_maskz_permutexvar_ps(w.mask[i], from[i], _mm512_loadu_ps(src + w.at[i]));
      if (kResidual) v = _mm512_add_ps(v, load_lanes(residual + c, lanes));
      store_lanes(dst + c, lanes, _mm512_max_ps(floor, v));
    }
    if (kResidual) residual += dst_stride;
  }
}

void fill_closed(int64_t pixels, const ChannelSet& set, const float* residual, bool relu,
                 int64_t dst_stride, float* dst);

void expand_pixels(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                   const float* residual, bool relu, int64_t dst_stride, float* dst) {
  using Expand = decltype(&expand_words<1, false>);
  constexpr Expand kByCount[2][kWords + 1] = {
      {nullptr, expand_words<1, false>, expand_words<2, false>, expand_words<3, false>,
       expand_words<4, false>},
      {nullptr, expand_words<1, true>, expand_words<2, true>, expand_words<3, true>,
       expand_words<4, true>}};
  int64_t k = 0, open = 0, done = 0;
  while (open < set.open) {
    const Words w = next_words(set, &k, &open);
    done += w.count;
    kByCount[residual != nullptr][w.count](src, src_stride, pixels, set, w, residual, relu,
                                           dst_stride, dst);
  }
  if (done * kLanes < set.channels) {
    fill_closed(pixels, set, residual, relu, dst_stride, dst);
  }
}

void scatter_pixels(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                    int64_t dst_stride, float* dst) {
  int64_t k = 0, open = 0;
  while (open < set.open) {
    const Words w = next_words(set, &k, &open);
    __m512i from[kWords];
    for (int i = 0; i < w.count; ++i) from[i] = unpacking(w.mask[i]);
    for (int64_t p = 0; p < pixels; ++p) {
      const float* s = src + p * src_stride;
      float* d = dst + p * dst_stride;
      for (int i = 0; i < w.count; ++i) {
        const __m512 v = _mm512_permutexvar_ps(from[i], _mm512_loadu_ps(s + w.at[i]));
        store_lanes(d + w.channel[i], w.mask[i], v);
      }
    }
  }
}

void fill_closed(int64_t pixels, const ChannelSet& set, const float* residual, bool relu,
                 int64_t dst_stride, float* dst) {
  for (int64_t p = 0; p < pixels; ++p, dst += dst_stride) {
    for (int64_t c = 0; c < set.channels; c += kLanes) {
      if (set.bits[c / kLanes] != 0) continue;
      const __mmask16 lanes = first_lanes(set.channels - c);
      const __m512 v = residual == nullptr ? _mm512_setzero_ps() : load_lanes(residual + c, lanes);
      store_lanes(dst + c, lanes, activate(v, relu));
    }
    if (residual != nullptr) residual += dst_stride;
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

// Four chains a channel hide the latency of the additions.
void sum_pixels(const float* src, int64_t pixel_stride, int64_t pixels, int64_t channels,
                float* sum) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const __mmask16 lanes = first_lanes(channels - c);
    __m512 acc[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                     _mm512_setzero_ps()};
    for (int64_t p = 0; p < pixels; ++p) {
      acc[p % 4] = _mm512_add_ps(acc[p % 4], load_lanes(src + p * pixel_stride + c, lanes));
    }
    const __m512 all = _mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3]));
    store_lanes(sum + c, lanes, all);
  }
}

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

const Micro<float> kAvx512F32 = {
    {0, 16, 14, 9}, 4,           conv_tile,      compress_panel, compress_pixels,
    gather_planes,  affine_relu, interleave,     deinterleave,   expand_pixels,
    scatter_pixels, fill_closed, scatter_planes, sum_pixels};

}  // namespace ddi
#endif
