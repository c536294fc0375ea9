// The register tile of the AVX-512 micro-kernels, for an Op that says how a cell is multiplied, and
// the shuffling of strips.
// Included inside a target region, after micro_avx512_pixels.h; see isa_region.h.
//
// An Op has
//   Type                      of x
//   kMaxStrips                4, or 1: each number of strips is code of its own
//   kFetches                  whether there are tiles that fetch ahead
//   Sum, Weights, Inputs      registers of kLanes sums, of a panel row, of a repeated cell
//   start(tile, panel)        what a sum begins with
//   weights(row), inputs(cells)
//   multiply_add(sum, x, w)
//   value(tile, panel, sum)   what a sum stands for, in float
#pragma once

namespace ddi {
namespace {

enum Finish { kSums, kBias, kBiasResidual };  // what follows the sums of whole panels

// Of [pixel][panel] sums; what a tile says is read once, because for all that the compiler knows
// every store changes it.
template <Finish F, class Op, int P, int V>
DDI_INLINE void finish_whole(const ConvTile<typename Op::Type>& t, typename Op::Sum (&acc)[P][V]) {
  constexpr int kFirst = (P + 1) / 2;
  const __m512 floor = _mm512_set1_ps(t.relu ? 0.0f : -__builtin_inff());
  const int64_t stride = t.out_stride;
  float* const out[2] = {t.out[0], t.out[1]};
  const float* const residual[2] = {t.residual[0], t.residual[1]};
  DDI_UNROLL
  for (int v = 0; v < V; ++v) {
    const int64_t column = t.out_at[v];
    const __m512 bias = F == kSums ? _mm512_setzero_ps() : _mm512_loadu_ps(t.bias + v * kLanes);
    DDI_UNROLL
    for (int p = 0; p < P; ++p) {
      const int run = p < kFirst ? 0 : 1;
      const int64_t at = (p - run * kFirst) * stride + column;
      __m512 y = Op::value(t, v, acc[p][v]);
      if (F != kSums) y = _mm512_add_ps(y, bias);
      if (F == kBiasResidual) y = _mm512_add_ps(y, _mm512_loadu_ps(residual[run] + at));
      // max returns its second operand if either is NaN, so NaN passes through.
      if (F != kSums) y = _mm512_max_ps(floor, y);
      _mm512_storeu_ps(out[run] + at, y);
    }
  }
}

// What follows the sums of one panel of one pixel, which is `at` in its run.
template <class Op>
DDI_INLINE void store_outputs(const ConvTile<typename Op::Type>& t, int run, int64_t at, int panel,
                              __mmask16 lanes, __m512 sums) {
  __m512 y = _mm512_add_ps(sums, _mm512_loadu_ps(t.bias + panel * kLanes));
  if (t.scale != nullptr) y = _mm512_mul_ps(y, _mm512_loadu_ps(t.scale + panel * kLanes));
  if (t.residual[0] != nullptr) y = _mm512_add_ps(y, load_lanes(t.residual[run] + at, lanes));
  store_lanes(t.out[run] + at, lanes, activate(y, t.relu));
}

// The rest: sums times a scale, and panels of which not all columns exist. Once for tiles of all
// sizes, which would fill half the code with it.
template <class Op>
__attribute__((noinline)) void finish_sums(const ConvTile<typename Op::Type>& t, int pixels,
                                           int panels, const float* sums) {
  const int first = (pixels + 1) / 2;
  for (int p = 0; p < pixels; ++p) {
    const int run = p < first ? 0 : 1;
    for (int v = 0; v < panels; ++v, sums += kLanes) {
      const int64_t at = (p - run * first) * t.out_stride + t.out_at[v];
      const __mmask16 lanes = first_lanes(v == panels - 1 ? t.last_lanes : kLanes);
      store_outputs<Op>(t, run, at, v, lanes, _mm512_load_ps(sums));
    }
  }
}

template <class Op, int P, int V>
DDI_INLINE void finish(const ConvTile<typename Op::Type>& t, typename Op::Sum (&acc)[P][V]) {
  if (t.bias == nullptr) return finish_whole<kSums, Op>(t, acc);
  if (t.scale == nullptr && t.last_lanes == kLanes) {
    if (t.residual[0] == nullptr) return finish_whole<kBias, Op>(t, acc);
    return finish_whole<kBiasResidual, Op>(t, acc);
  }
  alignas(64) float sums[P * V * kLanes];
  DDI_UNROLL
  for (int p = 0; p < P; ++p) {
    DDI_UNROLL
    for (int v = 0; v < V; ++v) {
      _mm512_store_ps(sums + (p * V + v) * kLanes, Op::value(t, v, acc[p][v]));
    }
  }
  finish_sums<Op>(t, P, V, sums);
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

template <int S>
DDI_INLINE __m512i broadcast(const uint32_t* a) {
  if (S == 2) return _mm512_set1_epi64(*reinterpret_cast<const int64_t*>(a));
  if (S == 4) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a)));
  }
  return _mm512_set1_epi32(static_cast<int>(*a));
}

// How a tile finds its weights, and whether it fetches others meanwhile.
enum Walk { kPlain, kAhead, kListed };

template <class Op, int P, int V, int S, Walk W>
void conv_tile_of(const ConvTile<typename Op::Type>& t) {
  using Cell = typename Types<typename Op::Type>::Cell;
  constexpr int kFirst = (P + 1) / 2, kPack = Types<typename Op::Type>::kPack;
  typename Op::Sum acc[P][V];
  DDI_UNROLL
  for (int p = 0; p < P; ++p) {
    DDI_UNROLL
    for (int v = 0; v < V; ++v) acc[p][v] = Op::start(t, v);
  }
  const int64_t stride = t.pixel_stride;
  const int32_t *row = t.row, *ahead_row = t.ahead_row;
  for (int64_t s = 0; s < t.segments; ++s) {
    const Segment& segment = t.segment[s];
    const Cell *a0 = t.in[0] + segment.offset, *a1 = t.in[1] + segment.offset;
    int64_t at = segment.row * kLanes;
    for (int64_t c = segment.length; c > 0; --c, a0 += S, a1 += S) {
      if (W == kListed) at = static_cast<int64_t>(*row++) * kLanes;
      if (W != kPlain) {
        const int64_t line = *ahead_row / kPack;
        ahead_row += kPack;
        _mm_prefetch(reinterpret_cast<const char*>(t.ahead + line * kLanes), _MM_HINT_T1);
      }
      typename Op::Weights w[V];
      DDI_UNROLL
      for (int v = 0; v < V; ++v) w[v] = Op::weights(t.weight[v] + at);
      if (W != kListed) at += kLanes;
      DDI_UNROLL
      for (int p = 0; p < P; ++p) {
        const Cell* a = p < kFirst ? a0 + p * stride : a1 + (p - kFirst) * stride;
        const typename Op::Inputs x = Op::inputs(broadcast<S>(a));
        DDI_UNROLL
        for (int v = 0; v < V; ++v) acc[p][v] = Op::multiply_add(acc[p][v], x, w[v]);
      }
    }
  }
  finish<Op, P, V>(t, acc);
}

template <class Op>
using TileFn = void (*)(const ConvTile<typename Op::Type>&);

// Tiles of one panel have no time to fetch ahead; three are rare, and code is not free.
template <class Op>
constexpr bool fetches(int panels) {
  return Op::kFetches && (panels == 2 || (panels == 3 && Types<typename Op::Type>::kPack == 1));
}

template <class Op, int P, int V, int S, Walk W>
constexpr TileFn<Op> tile_fn() {
  if constexpr (W != kAhead || fetches<Op>(V)) return conv_tile_of<Op, P, V, S, W>;
  return nullptr;
}

template <class Op, int P, int V, int S, Walk W>
constexpr TileFn<Op> kTile = tile_fn<Op, P, V, S, W>();

// 16 x 1, 14 x 2 and 9 x 3 leave room for the weight rows and one broadcast among 32 registers.
template <class Op, int S, Walk W>
constexpr TileFn<Op> kTiles[kMaxPanels + 1][17] = {
    {},
    {nullptr, kTile<Op, 1, 1, S, W>, kTile<Op, 2, 1, S, W>, kTile<Op, 3, 1, S, W>,
     kTile<Op, 4, 1, S, W>, kTile<Op, 5, 1, S, W>, kTile<Op, 6, 1, S, W>, kTile<Op, 7, 1, S, W>,
     kTile<Op, 8, 1, S, W>, kTile<Op, 9, 1, S, W>, kTile<Op, 10, 1, S, W>, kTile<Op, 11, 1, S, W>,
     kTile<Op, 12, 1, S, W>, kTile<Op, 13, 1, S, W>, kTile<Op, 14, 1, S, W>, kTile<Op, 15, 1, S, W>,
     kTile<Op, 16, 1, S, W>},
    {nullptr, kTile<Op, 1, 2, S, W>, kTile<Op, 2, 2, S, W>, kTile<Op, 3, 2, S, W>,
     kTile<Op, 4, 2, S, W>, kTile<Op, 5, 2, S, W>, kTile<Op, 6, 2, S, W>, kTile<Op, 7, 2, S, W>,
     kTile<Op, 8, 2, S, W>, kTile<Op, 9, 2, S, W>, kTile<Op, 10, 2, S, W>, kTile<Op, 11, 2, S, W>,
     kTile<Op, 12, 2, S, W>, kTile<Op, 13, 2, S, W>, kTile<Op, 14, 2, S, W>},
    {nullptr, kTile<Op, 1, 3, S, W>, kTile<Op, 2, 3, S, W>, kTile<Op, 3, 3, S, W>,
     kTile<Op, 4, 3, S, W>, kTile<Op, 5, 3, S, W>, kTile<Op, 6, 3, S, W>, kTile<Op, 7, 3, S, W>,
     kTile<Op, 8, 3, S, W>, kTile<Op, 9, 3, S, W>}};

template <class Op>
void conv_tile(const ConvTile<typename Op::Type>& t, int pixels, int panels, int strips) {
  if constexpr (Op::kMaxStrips > 1) {
    if (strips == 2) return kTiles<Op, 2, kPlain>[panels][pixels](t);
    if (strips == 4) return kTiles<Op, 4, kPlain>[panels][pixels](t);
  }
  if constexpr (Types<typename Op::Type>::kPack == 1) {  // else weights are compressed instead
    if (t.row != nullptr) return kTiles<Op, 1, kListed>[panels][pixels](t);
  }
  if constexpr (Op::kFetches) {
    if (t.ahead != nullptr && fetches<Op>(panels)) return kTiles<Op, 1, kAhead>[panels][pixels](t);
  }
  kTiles<Op, 1, kPlain>[panels][pixels](t);
}

inline void interleave(const float* src, int64_t src_stride, int strips, int64_t count,
                       float* dst) {
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

inline void deinterleave(const float* src, int strips, int64_t count, int64_t dst_stride,
                         float* dst) {
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

// Only moves, whatever the bits mean.
inline void interleave(const uint32_t* src, int64_t src_stride, int strips, int64_t count,
                       uint32_t* dst) {
  interleave(reinterpret_cast<const float*>(src), src_stride, strips, count,
             reinterpret_cast<float*>(dst));
}

}  // namespace
}  // namespace ddi
