// Moving activations in and out of compact form, for the AVX2 micro-kernels of all types. There is
// no compress or expand instruction, so both are a lane permutation looked up by the eight bits of
// a mask. Included inside a target region, after micro_avx2_lanes.h and before what else it holds;
// see isa_region.h.
#pragma once

namespace ddi {
namespace {

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

DDI_INLINE __m256i lanes_of(const int8_t* entry) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(entry)));
}

DDI_INLINE __m256 pack(__m256 v, uint32_t mask) {
  return _mm256_permutevar8x32_ps(v, lanes_of(kPermutations.pack[mask]));
}

DDI_INLINE __m256 spread(__m256 v, uint32_t mask) {
  const __m256i lanes = lanes_of(kPermutations.spread[mask]);
  const __m256 closed = _mm256_castsi256_ps(_mm256_srai_epi32(lanes, 31));
  return _mm256_andnot_ps(closed, _mm256_permutevar8x32_ps(v, lanes));
}

constexpr int64_t kPrefetchPixels = 16;

// Moves the open ones of kHalf neighbouring channels, n of which exist, to the front.
// Whole-register stores: what one spills the next channels, pixel or row overwrites.
template <class T>
DDI_INLINE void move_open(const T* src, int64_t n, uint32_t mask, float* dst) {
  _mm256_storeu_ps(dst, pack(load_first(src, n), mask));
}

DDI_INLINE void move_open(const bf16* src, int64_t n, uint32_t mask, bf16* dst) {
  const auto* lanes = reinterpret_cast<const __m128i*>(kPermutations.pack[mask]);
  const __m128i lane = _mm_cvtepu8_epi16(_mm_loadl_epi64(lanes));
  const __m128i low = _mm_add_epi16(lane, lane), high = _mm_slli_epi16(low, 8);
  const __m128i bytes = _mm_add_epi16(_mm_or_si128(low, high), _mm_set1_epi16(0x100));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), _mm_shuffle_epi8(load_16_bits(src, n), bytes));
}

DDI_INLINE __m128i load_bytes(const int8_t* src, int64_t n) {
  int64_t bytes = 0;
  if (n >= kHalf) {
    __builtin_memcpy(&bytes, src, sizeof(bytes));
  } else {
    __builtin_memcpy(&bytes, src, static_cast<size_t>(n));
  }
  return _mm_cvtsi64_si128(bytes);
}

DDI_INLINE void move_open(const int8_t* src, int64_t n, uint32_t mask, int8_t* dst) {
  const auto* lanes = reinterpret_cast<const __m128i*>(kPermutations.pack[mask]);
  const __m128i v = _mm_shuffle_epi8(load_bytes(src, n), _mm_loadl_epi64(lanes));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(dst), _mm_xor_si128(v, _mm_set1_epi8(-128)));
}

// What compact pixels of x of type T consist of.
template <class T>
struct Stored {
  using Type = float;
};
template <>
struct Stored<bf16> {
  using Type = bf16;
};
template <>
struct Stored<int8_t> {
  using Type = int8_t;
};

template <class T>
void compress_pixels(const T* src, int64_t pixel_stride, int64_t pixels, const ChannelSet& set,
                     typename Types<T>::Cell* cells) {
  constexpr int kPack = Types<T>::kPack;
  auto* dst = reinterpret_cast<typename Stored<T>::Type*>(cells);
  const int64_t ahead = kPrefetchPixels * pixel_stride;
  const int64_t missing = (kPack - set.open % kPack) % kPack;  // of the last cell
  for (int64_t p = 0; p < pixels; ++p, src += pixel_stride) {
    for (int64_t c = 0; c < set.channels; c += kHalf) {
      const uint32_t mask = (set.bits[c / kLanes] >> (c % kLanes)) & 0xffu;
      if (mask == 0) continue;
      _mm_prefetch(reinterpret_cast<const char*>(src + c + ahead), _MM_HINT_T0);
      move_open(src + c, set.channels - c, mask, dst);
      dst += __builtin_popcount(mask);
    }
    if (kPack > 1) __builtin_memcpy(dst, &Types<T>::kZero, missing * (4 / kPack));
    dst += missing;
  }
}

template <class Out>
void expand_pixels(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                   const Out* residual, bool relu, int64_t dst_stride, Out* dst) {
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

template <class Out>
void fill_closed(int64_t pixels, const ChannelSet& set, const Out* residual, bool relu,
                 int64_t dst_stride, Out* dst) {
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
inline void transpose(__m256 r[kHalf]) {
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

// kHalf pixels of cell k.
template <class T>
DDI_INLINE __m256 load_planes(const T* src, int64_t channel_stride, const ChannelSet& set,
                              int64_t k, int64_t pixels) {
  return load_first(src + set.index[k] * channel_stride, pixels);
}

DDI_INLINE __m256i load_plane(const bf16* src, int64_t pixels) {
  return _mm256_cvtepu16_epi32(load_16_bits(src, pixels));
}

DDI_INLINE __m256i load_plane(const int8_t* src, int64_t pixels) {
  return _mm256_cvtepu8_epi32(load_bytes(src, pixels));
}

template <class T>
DDI_INLINE __m256 join_planes(const T* src, int64_t channel_stride, const ChannelSet& set,
                              int64_t k, int64_t pixels) {
  constexpr int kPack = Types<T>::kPack;
  __m256i cells = _mm256_set1_epi32(static_cast<int>(Types<T>::kZero));
  for (int j = 0; j < kPack && k * kPack + j < set.open; ++j) {
    const __m256i plane = load_plane(src + set.index[k * kPack + j] * channel_stride, pixels);
    cells = _mm256_xor_si256(cells, _mm256_sll_epi32(plane, _mm_cvtsi32_si128(32 / kPack * j)));
  }
  return _mm256_castsi256_ps(cells);
}

DDI_INLINE __m256 load_planes(const bf16* src, int64_t channel_stride, const ChannelSet& set,
                              int64_t k, int64_t pixels) {
  return join_planes(src, channel_stride, set, k, pixels);
}

DDI_INLINE __m256 load_planes(const int8_t* src, int64_t channel_stride, const ChannelSet& set,
                              int64_t k, int64_t pixels) {
  return join_planes(src, channel_stride, set, k, pixels);
}

template <class T>
void gather_planes(const T* src, int64_t channel_stride, int64_t pixels, const ChannelSet& set,
                   typename Types<T>::Cell* dst) {
  const int64_t cells = (set.open + Types<T>::kPack - 1) / Types<T>::kPack;
  for (int64_t p = 0; p < pixels; p += kHalf) {
    for (int64_t i = 0; i < cells; i += kHalf) {
      __m256 r[kHalf];
      for (int k = 0; k < kHalf; ++k) {
        r[k] = i + k < cells ? load_planes(src + p, channel_stride, set, i + k, pixels - p)
                             : _mm256_setzero_ps();
      }
      transpose(r);
      for (int k = 0; k < kHalf && p + k < pixels; ++k) {
        store_first(reinterpret_cast<float*>(dst + (p + k) * cells + i), cells - i, r[k]);
      }
    }
  }
}

template <class Out>
void scatter_planes(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                    int64_t channel_stride, const Out* residual, bool relu, Out* dst) {
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

template <class Out>
void sum_pixels(const Out* src, int64_t pixel_stride, int64_t pixels, int64_t channels,
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
