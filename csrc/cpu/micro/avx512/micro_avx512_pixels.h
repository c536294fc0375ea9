// Moving activations in and out of compact form, for the AVX-512 micro-kernels of all types: masks
// become hardware masks, compress, expand and permute are single instructions. Included inside a
// target region, after micro_avx512_lanes.h and before what else it holds; see isa_region.h.
#pragma once

namespace ddi {
namespace {

// Lane permutations that compress: a permutation is one operation where a compression is several.
inline __m512i packing(__mmask16 mask) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_maskz_compress_epi32(mask, lane);
}

inline __m512i unpacking(__mmask16 mask) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_maskz_expand_epi32(mask, lane);
}

// How the open ones of kLanes neighbouring channels move together, by the type of x. `Stored` is
// what compact pixels consist of.
struct MoveFloats {
  using Stored = float;
  using From = __m512i;
  static DDI_INLINE From from(__mmask16 mask) { return packing(mask); }
  template <class T>
  static DDI_INLINE void move(const T* src, __mmask16 load, From from, __mmask16 store,
                              float* dst) {
    store_lanes(dst, store, _mm512_permutexvar_ps(from, load_lanes(src, load)));
  }
};

template <class T>
struct Mover : MoveFloats {};

template <>
struct Mover<bf16> {
  using Stored = bf16;
  using From = __m256i;
  static DDI_INLINE From from(__mmask16 mask) { return _mm512_cvtepi32_epi16(packing(mask)); }
  static DDI_INLINE void move(const bf16* src, __mmask16 load, From from, __mmask16 store,
                              bf16* dst) {
    store_16_bits(dst, store, _mm256_permutexvar_epi16(from, load_16_bits(src, load)));
  }
};

template <>
struct Mover<int8_t> {
  using Stored = int8_t;
  using From = __m128i;
  static DDI_INLINE From from(__mmask16 mask) { return _mm512_cvtepi32_epi8(packing(mask)); }
  static DDI_INLINE void move(const int8_t* src, __mmask16 load, From from, __mmask16 store,
                              int8_t* dst) {
    const __m128i v = load == 0xffff ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(src))
                                     : _mm_maskz_loadu_epi8(load, src);
    const __m128i offset = _mm_set1_epi8(-128);
    const __m128i moved = _mm_xor_si128(_mm_shuffle_epi8(v, from), offset);
    if (store == 0xffff) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), moved);
    } else {
      _mm_mask_storeu_epi8(dst, store, moved);
    }
  }
};

// Words of a channel set and what moves them between a full and a compact pixel: as many at once as
// most pixels have, so that pixels are read and written front to back, as hardware fetches lines.
constexpr int kWords = 64;
constexpr int64_t kPrefetchPixels = 16;

// What moves a word is Move::from(mask), a Move::From.
template <class Move>
struct Words {
  int count;
  int64_t channel[kWords];  // of the full pixel
  int64_t at[kWords];       // in the compact pixel
  __mmask16 mask[kWords];   // open channels
  typename Move::From from[kWords];
};

// Words from *k on, of which *open channels are already done; `closed` says whether those without
// open channels count.
template <class Move>
inline void next_words(const ChannelSet& set, bool closed, int64_t* k, int64_t* open,
                       Words<Move>* w) {
  const int64_t words = (set.channels + kLanes - 1) / kLanes;
  for (w->count = 0; *k < words && w->count < kWords; ++*k) {
    const __mmask16 mask = set.bits[*k];
    if (mask == 0 && !closed) continue;
    w->channel[w->count] = *k * kLanes;
    w->at[w->count] = *open;
    w->mask[w->count] = mask;
    w->from[w->count++] = Move::from(mask);
    *open += __builtin_popcount(mask);
  }
}

// Whole-register stores in the first pass over the pixels: what one spills the next word or pixel
// overwrites. Later passes must not reach into the next pixel. A last cell that is not full is
// completed in the last pass. N is w.count, so that what moves few words stays in registers, or 0.
template <class T, int N>
void compress_words(const T* src, int64_t pixel_stride, int64_t pixels, const ChannelSet& set,
                    const Words<Mover<T>>& w, bool first_pass, bool last_pass,
                    typename Mover<T>::Stored* dst) {
  constexpr int kPack = Types<T>::kPack;
  const int last = (N > 0 ? N : w.count) - 1;
  // Only the last word can be short.
  const __mmask16 whole = 0xffff, tail = first_lanes(set.channels - w.channel[last]);
  const __mmask16 end = first_pass ? whole : first_lanes(set.open - w.at[last]);
  const int64_t dst_stride = (set.open + kPack - 1) / kPack * kPack;
  const int64_t missing = last_pass ? dst_stride - set.open : 0;
  const int64_t ahead = kPrefetchPixels * pixel_stride;
  for (int64_t p = 0; p < pixels; ++p, src += pixel_stride, dst += dst_stride) {
    const auto move = [&](int i) {
      const T* s = src + w.channel[i];
      _mm_prefetch(reinterpret_cast<const char*>(s + ahead), _MM_HINT_T0);
      Mover<T>::move(s, i == last ? tail : whole, w.from[i], i == last ? end : whole,
                     dst + w.at[i]);
    };
    if constexpr (N > 0) {
      DDI_UNROLL
      for (int i = 0; i < N; ++i) move(i);
    } else {
      for (int i = 0; i <= last; ++i) move(i);
    }
    if (kPack > 1) __builtin_memcpy(dst + set.open, &Types<T>::kZero, missing * (4 / kPack));
  }
}

template <class T>
void compress_pixels(const T* src, int64_t pixel_stride, int64_t pixels, const ChannelSet& set,
                     typename Types<T>::Cell* dst) {
  auto* stored = reinterpret_cast<typename Mover<T>::Stored*>(dst);
  Words<Mover<T>> w;
  for (int64_t k = 0, open = 0; open < set.open;) {
    const bool first_pass = open == 0;
    next_words(set, false, &k, &open, &w);
    const auto compress = w.count == 1   ? compress_words<T, 1>
                          : w.count == 2 ? compress_words<T, 2>
                          : w.count == 4 ? compress_words<T, 4>
                                         : compress_words<T, 0>;
    compress(src, pixel_stride, pixels, set, w, first_pass, open == set.open, stored);
  }
}

struct Spread {
  using From = __m512i;
  static DDI_INLINE From from(__mmask16 mask) { return unpacking(mask); }
};

template <class Out, bool kResidual>
void expand_words(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                  const Words<Spread>& w, const Out* residual, bool relu, int64_t dst_stride,
                  Out* dst) {
  // What the activation takes the maximum with; of NaN and NaN the second is the value itself.
  const __m512 floor = _mm512_set1_ps(relu ? 0.0f : -__builtin_inff());
  const int last = w.count - 1;
  // Only the last word can be short.
  const __mmask16 tail = first_lanes(set.channels - w.channel[last]);
  const int64_t first = w.channel[0];
  for (int64_t p = 0; p < pixels; ++p, src += src_stride, dst += dst_stride) {
    for (int i = 0; i <= last; ++i) {
      const __mmask16 lanes = i == last ? tail : static_cast<__mmask16>(0xffff);
      const int64_t c = first + i * kLanes;
      const __m512 compact = _mm512_loadu_ps(src + w.at[i]);
      __m512 v = _mm512_maskz_permutexvar_ps(w.mask[i], w.from[i], compact);
      if (kResidual) v = _mm512_add_ps(v, load_lanes(residual + c, lanes));
      store_lanes(dst + c, lanes, _mm512_max_ps(floor, v));
    }
    if (kResidual) residual += dst_stride;
  }
}

template <class Out>
void expand_pixels(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                   const Out* residual, bool relu, int64_t dst_stride, Out* dst) {
  const auto expand = residual == nullptr ? expand_words<Out, false> : expand_words<Out, true>;
  Words<Spread> w;
  for (int64_t k = 0, open = 0; k * kLanes < set.channels;) {
    next_words(set, true, &k, &open, &w);
    expand(src, src_stride, pixels, set, w, residual, relu, dst_stride, dst);
  }
}

template <class Out>
void fill_closed(int64_t pixels, const ChannelSet& set, const Out* residual, bool relu,
                 int64_t dst_stride, Out* dst) {
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
inline void transpose(__m512 r[kLanes]) {
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

// kLanes pixels of cell k.
template <class T>
DDI_INLINE __m512 load_planes(const T* src, int64_t channel_stride, const ChannelSet& set,
                              int64_t k, __mmask16 pixels) {
  return load_lanes(src + set.index[k] * channel_stride, pixels);
}

DDI_INLINE __m512i load_plane(const bf16* src, __mmask16 pixels) {
  return _mm512_cvtepu16_epi32(load_16_bits(src, pixels));
}

DDI_INLINE __m512i load_plane(const int8_t* src, __mmask16 pixels) {
  return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(pixels, src));
}

template <class T>
DDI_INLINE __m512 join_planes(const T* src, int64_t channel_stride, const ChannelSet& set,
                              int64_t k, __mmask16 pixels) {
  constexpr int kPack = Types<T>::kPack;
  __m512i cells = _mm512_set1_epi32(static_cast<int>(Types<T>::kZero));
  for (int j = 0; j < kPack && k * kPack + j < set.open; ++j) {
    const __m512i plane = load_plane(src + set.index[k * kPack + j] * channel_stride, pixels);
    cells = _mm512_xor_si512(cells, _mm512_sll_epi32(plane, _mm_cvtsi32_si128(32 / kPack * j)));
  }
  return _mm512_castsi512_ps(cells);
}

DDI_INLINE __m512 load_planes(const bf16* src, int64_t channel_stride, const ChannelSet& set,
                              int64_t k, __mmask16 pixels) {
  return join_planes(src, channel_stride, set, k, pixels);
}

DDI_INLINE __m512 load_planes(const int8_t* src, int64_t channel_stride, const ChannelSet& set,
                              int64_t k, __mmask16 pixels) {
  return join_planes(src, channel_stride, set, k, pixels);
}

template <class T>
void gather_planes(const T* src, int64_t channel_stride, int64_t pixels, const ChannelSet& set,
                   typename Types<T>::Cell* dst) {
  const int64_t cells = (set.open + Types<T>::kPack - 1) / Types<T>::kPack;
  for (int64_t p = 0; p < pixels; p += kLanes) {
    const __mmask16 pixel_lanes = first_lanes(pixels - p);
    for (int64_t i = 0; i < cells; i += kLanes) {
      __m512 r[kLanes];
      for (int k = 0; k < kLanes; ++k) {
        r[k] = i + k < cells ? load_planes(src + p, channel_stride, set, i + k, pixel_lanes)
                             : _mm512_setzero_ps();
      }
      transpose(r);
      const __mmask16 cell_lanes = first_lanes(cells - i);
      for (int k = 0; k < kLanes && p + k < pixels; ++k) {
        _mm512_mask_storeu_ps(dst + (p + k) * cells + i, cell_lanes, r[k]);
      }
    }
  }
}

template <class Out>
void scatter_planes(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                    int64_t channel_stride, const Out* residual, bool relu, Out* dst) {
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
          v = _mm512_add_ps(v, load_lanes(residual + at, pixel_lanes));
        }
        store_lanes(dst + at, pixel_lanes, activate(v, relu));
      }
    }
  }
}

// Sums of N registers of channels. Four chains each hide the latency of the additions, and several
// registers at a time read whole stretches of a pixel.
template <int N, class Out>
DDI_INLINE void sum_registers(const Out* src, int64_t pixel_stride, int64_t pixels, __mmask16 last,
                              float* sum) {
  __m512 acc[N][4];
  DDI_UNROLL
  for (int v = 0; v < N; ++v) {
    DDI_UNROLL
    for (int i = 0; i < 4; ++i) acc[v][i] = _mm512_setzero_ps();
  }
  const auto add = [&](int chain) {
    DDI_UNROLL
    for (int v = 0; v < N; ++v) {
      const __mmask16 lanes = v == N - 1 ? last : 0xffff;
      acc[v][chain] = _mm512_add_ps(acc[v][chain], load_lanes(src + v * kLanes, lanes));
    }
    src += pixel_stride;
  };
  for (; pixels >= 4; pixels -= 4) {
    DDI_UNROLL
    for (int i = 0; i < 4; ++i) add(i);
  }
  for (; pixels > 0; --pixels) add(0);
  DDI_UNROLL
  for (int v = 0; v < N; ++v) {
    const __m512 all =
        _mm512_add_ps(_mm512_add_ps(acc[v][0], acc[v][1]), _mm512_add_ps(acc[v][2], acc[v][3]));
    store_lanes(sum + v * kLanes, v == N - 1 ? last : 0xffff, all);
  }
}

template <class Out>
void sum_pixels(const Out* src, int64_t pixel_stride, int64_t pixels, int64_t channels,
                float* sum) {
  constexpr int64_t kFour = 4 * kLanes;
  int64_t c = 0;
  for (; c + kFour <= channels; c += kFour) {
    sum_registers<4>(src + c, pixel_stride, pixels, 0xffff, sum + c);
  }
  for (; c < channels; c += kLanes) {
    sum_registers<1>(src + c, pixel_stride, pixels, first_lanes(channels - c), sum + c);
  }
}

}  // namespace
}  // namespace ddi
