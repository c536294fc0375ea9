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
void conv_tile_of(const ConvTile<float>& t) {
  __m256 acc[P][2];
  DDI_UNROLL
  for (int p = 0; p < P; ++p) acc[p][0] = acc[p][1] = _mm256_setzero_ps();
  const float* w = t.weight;
  const int64_t stride = t.pixel_stride;
  for (int64_t s = 0; s < t.segments; ++s) {
    const float* a = t.in + t.offset[s];
    for (int64_t c = 0; c < t.segment_length; ++c, ++a, w += kLanes) {
      const __m256 low = _mm256_loadu_ps(w), high = _mm256_loadu_ps(w + kHalf);
      DDI_UNROLL
      for (int p = 0; p < P; ++p) {
        const __m256 x = _mm256_broadcast_ss(a + p * stride);
        acc[p][0] = _mm256_fmadd_ps(x, low, acc[p][0]);
        acc[p][1] = _mm256_fmadd_ps(x, high, acc[p][1]);
      }
    }
  }
  DDI_UNROLL
  for (int p = 0; p < P; ++p) {
    DDI_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int64_t at = p * t.out_stride + h * kHalf, n = t.last_lanes - h * kHalf;
      __m256 v = _mm256_add_ps(acc[p][h], _mm256_loadu_ps(t.bias + h * kHalf));
      if (t.scale != nullptr) v = _mm256_mul_ps(v, _mm256_loadu_ps(t.scale + h * kHalf));
      if (t.residual != nullptr) v = _mm256_add_ps(v, load_first(t.residual + at, n));
      store_first(t.out + at, n, activate(v, t.relu));
    }
  }
}

using TileFn = void (*)(const ConvTile<float>&);

constexpr TileFn kTiles[] = {nullptr,         conv_tile_of<1>, conv_tile_of<2>, conv_tile_of<3>,
                             conv_tile_of<4>, conv_tile_of<5>, conv_tile_of<6>};

void conv_tile(const ConvTile<float>& t, int pixels, int /*panels: always 1*/) {
  kTiles[pixels](t);
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
        const uint32_t low = moves[m].mask & 0xffu, high = moves[m].mask >> kHalf;
        const float* src = moves[m].src + row;
        float* out = dst + moves[m].lane;
        if (low != 0) _mm256_storeu_ps(out, pack(_mm256_loadu_ps(src), low));
        if (high != 0) {
          _mm256_storeu_ps(out + __builtin_popcount(low), pack(_mm256_loadu_ps(src + kHalf), high));
        }
      }
    }
  }
}

void compress_pixels(const float* src, int64_t pixel_stride, int64_t pixels, const ChannelSet& set,
                     float* dst) {
  const float* end = dst + pixels * set.open;
  for (int64_t p = 0; p < pixels; ++p, src += pixel_stride) {
    for (int64_t c = 0; c < set.channels; c += kHalf) {
      const uint32_t mask = (set.bits[c / kLanes] >> (c % kLanes)) & 0xffu;
      if (mask == 0) continue;
      // A whole-register store where the next channels or pixels will overwrite what it spills.
      const int n = __builtin_popcount(mask);
      store_first(dst, end - dst >= kHalf ? kHalf : n,
                  pack(load_first(src + c, set.channels - c), mask));
      dst += n;
    }
  }
}

void expand_pixels(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                   const float* residual, bool relu, float* dst) {
  for (int64_t p = 0; p < pixels; ++p, src += src_stride) {
    const float* s = src;
    for (int64_t c = 0; c < set.channels; c += kHalf) {
      const uint32_t mask = (set.bits[c / kLanes] >> (c % kLanes)) & 0xffu;
      const int n = __builtin_popcount(mask);
      __m256 v = spread(load_first(s, n), mask);
      if (residual != nullptr) v = _mm256_add_ps(v, load_first(residual + c, set.channels - c));
      store_first(dst + c, set.channels - c, activate(v, relu));
      s += n;
    }
    dst += set.channels;
    if (residual != nullptr) residual += set.channels;
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

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

const Micro<float> kAvx2F32 = {{0, 6, 0, 0, 0}, conv_tile,     compress_panel, compress_pixels,
                               gather_planes,   expand_pixels, scatter_planes};

}  // namespace ddi
#endif
