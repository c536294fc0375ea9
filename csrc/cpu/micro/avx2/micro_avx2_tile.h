// The register tile of the AVX2 micro-kernels, for an Op that says how a cell is multiplied; the
// weights and the shuffling of strips that go with it. A panel row is two registers of kHalf lanes.
// Included inside a target region, after micro_avx2_pixels.h; see isa_region.h.
//
// An Op has
//   Type                    of x
//   Sums, Weights, Inputs   registers of kLanes sums, of a panel row, of a repeated cell
//   zero(), weights(row), inputs(cells)
//   multiply_add(sums, x, w)
//   value(tile, sums, h)    what half h of the sums stands for, in float
#pragma once

namespace ddi {
namespace {

template <class Op, int P>
DDI_INLINE void finish(const ConvTile<typename Op::Type>& t, typename Op::Sums (&acc)[P]) {
  constexpr int kFirst = (P + 1) / 2;
  DDI_UNROLL
  for (int p = 0; p < P; ++p) {
    const int run = p < kFirst ? 0 : 1;
    DDI_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int64_t at = (p - run * kFirst) * t.out_stride + t.out_at[0] + h * kHalf;
      if (t.bias == nullptr) {
        _mm256_storeu_ps(t.out[run] + at, Op::value(t, acc[p], h));
        continue;
      }
      const int64_t n = t.last_lanes - h * kHalf;
      __m256 v = _mm256_add_ps(Op::value(t, acc[p], h), _mm256_loadu_ps(t.bias + h * kHalf));
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

template <int S>
DDI_INLINE __m256i broadcast(const uint32_t* a) {
  if (S == 2) return _mm256_set1_epi64x(*reinterpret_cast<const int64_t*>(a));
  if (S == 4) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a)));
  }
  return _mm256_set1_epi32(static_cast<int>(*a));
}

template <class Op, int P, int S, bool kListed>
void conv_tile_of(const ConvTile<typename Op::Type>& t) {
  using Cell = typename Types<typename Op::Type>::Cell;
  constexpr int kFirst = (P + 1) / 2;
  typename Op::Sums acc[P];
  DDI_UNROLL
  for (int p = 0; p < P; ++p) acc[p] = Op::zero();
  const int64_t stride = t.pixel_stride;
  const int32_t* row = t.row;
  for (int64_t s = 0; s < t.segments; ++s) {
    const Segment& segment = t.segment[s];
    const Cell *a0 = t.in[0] + segment.offset, *a1 = t.in[1] + segment.offset;
    const Cell* w = t.weight[0] + segment.row * kLanes;
    for (int64_t c = segment.length; c > 0; --c, a0 += S, a1 += S) {
      if (kListed) w = t.weight[0] + static_cast<int64_t>(*row++) * kLanes;
      const typename Op::Weights weights = Op::weights(w);
      if (!kListed) w += kLanes;
      DDI_UNROLL
      for (int p = 0; p < P; ++p) {
        const Cell* a = p < kFirst ? a0 + p * stride : a1 + (p - kFirst) * stride;
        Op::multiply_add(acc[p], Op::inputs(broadcast<S>(a)), weights);
      }
    }
  }
  finish<Op, P>(t, acc);
}

template <class Op>
using TileFn = void (*)(const ConvTile<typename Op::Type>&);

template <class Op, int S, bool L>
constexpr TileFn<Op> kTiles[7] = {nullptr,
                                  conv_tile_of<Op, 1, S, L>,
                                  conv_tile_of<Op, 2, S, L>,
                                  conv_tile_of<Op, 3, S, L>,
                                  conv_tile_of<Op, 4, S, L>,
                                  conv_tile_of<Op, 5, S, L>,
                                  conv_tile_of<Op, 6, S, L>};

template <class Op>
void conv_tile(const ConvTile<typename Op::Type>& t, int pixels, int /*panels: always 1*/,
               int strips) {
  if (strips == 2) return kTiles<Op, 2, false>[pixels](t);
  if (strips == 4) return kTiles<Op, 4, false>[pixels](t);
  if constexpr (Types<typename Op::Type>::kPack == 1) {  // else weights are compressed instead
    if (t.row != nullptr) return kTiles<Op, 1, true>[pixels](t);
  }
  kTiles<Op, 1, false>[pixels](t);
}

// The lanes of half a compressed panel that come from half a packed panel.
template <class Cell>
struct HalfMove {
  const Cell* src;
  __m256i from;
  __m256 mask;
};

template <class Cell>
int split_moves(const PanelMoveOf<Cell>* moves, int n_moves, int half, HalfMove<Cell>* out) {
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

// Half a row of cells, those of the rows of channels row[0], ..., row[kPack - 1].
template <class T>
DDI_INLINE __m256 join_rows(const typename Types<T>::Cell* src, const int32_t* row) {
  constexpr int kPack = Types<T>::kPack, kBits = 32 / kPack;
  if constexpr (kPack == 1) {
    return _mm256_loadu_ps(src + static_cast<int64_t>(*row) * kLanes);
  } else {
    const __m256i channel = _mm256_set1_epi32((1 << kBits) - 1);
    __m256i cells = _mm256_setzero_si256();
    DDI_UNROLL
    for (int j = 0; j < kPack; ++j) {
      if (row[j] < 0) continue;
      const uint32_t* source = src + static_cast<int64_t>(row[j] / kPack) * kLanes;
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
      const __m128i down = _mm_cvtsi32_si128(kBits * (row[j] % kPack));
      const __m256i one = _mm256_and_si256(_mm256_srl_epi32(v, down), channel);
      cells = _mm256_or_si256(cells, _mm256_sll_epi32(one, _mm_cvtsi32_si128(kBits * j)));
    }
    return _mm256_castsi256_ps(cells);
  }
}

template <class T>
void compress_panel(const PanelMove<T>* moves, int n_moves, const int32_t* row, int64_t steps,
                    typename Types<T>::Cell* dst) {
  constexpr int kPack = Types<T>::kPack;
  HalfMove<typename Types<T>::Cell> halves[2][2 * kLanes];
  int count[2];
  for (int h = 0; h < 2; ++h) count[h] = split_moves(moves, n_moves, h, halves[h]);
  for (int64_t k = 0; k < steps; ++k, dst += kLanes, row += kPack) {
    const int64_t later = static_cast<int64_t>(row[kPrefetchRows] / kPack) * kLanes;
    for (int m = 0; m < n_moves; ++m) {
      _mm_prefetch(reinterpret_cast<const char*>(moves[m].src + later), _MM_HINT_T0);
    }
    for (int h = 0; h < 2; ++h) {
      __m256 v = _mm256_setzero_ps();
      for (int m = 0; m < count[h]; ++m) {
        const __m256 w = join_rows<T>(halves[h][m].src, row);
        v = _mm256_blendv_ps(v, _mm256_permutevar8x32_ps(w, halves[h][m].from), halves[h][m].mask);
      }
      _mm256_storeu_ps(reinterpret_cast<float*>(dst + h * kHalf), v);
    }
  }
}

// {a, b} -> a0 b0 a1 b1 ...
inline void zip(__m256 a, __m256 b, __m256 out[2]) {
  const __m256 low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
  out[0] = _mm256_permute2f128_ps(low, high, 0x20);
  out[1] = _mm256_permute2f128_ps(low, high, 0x31);
}

// {a, b} -> even elements of both, odd elements of both
inline void unzip(__m256 a, __m256 b, __m256 out[2]) {
  const __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
  const __m256d odd = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
  out[0] = _mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8));
  out[1] = _mm256_castpd_ps(_mm256_permute4x64_pd(odd, 0xd8));
}

inline void interleave(const float* src, int64_t src_stride, int strips, int64_t count,
                       float* dst) {
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

inline void deinterleave(const float* src, int strips, int64_t count, int64_t dst_stride,
                         float* dst) {
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

// Only moves, whatever the bits mean.
inline void interleave(const uint32_t* src, int64_t src_stride, int strips, int64_t count,
                       uint32_t* dst) {
  interleave(reinterpret_cast<const float*>(src), src_stride, strips, count,
             reinterpret_cast<float*>(dst));
}

}  // namespace
}  // namespace ddi
