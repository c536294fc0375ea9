// The Winograd micro-kernels of all instruction sets, for a Lanes that says what a register is:
//   V                               a register of kCount floats
//   load(src, n), store(dst, n, v)  of the first n; whole registers from n = kCount on
//   set(a), add(a, b), sub(a, b), mul(a, b)
//   madd(a, b, c)                   a * b + c
//   activate(v, relu)
// Every pass transforms along one axis; between the passes a tile lies in memory, in L1, because
// its 36 registers are more than any machine has. Included inside target regions, after all others;
// see isa_region.h.
#pragma once

namespace ddi {
namespace {

// B^T x.
template <class L>
DDI_INLINE void input_points(const typename L::V (&x)[4], typename L::V (&t)[4]) {
  t[0] = L::sub(x[0], x[2]);
  t[1] = L::add(x[1], x[2]);
  t[2] = L::sub(x[2], x[1]);
  t[3] = L::sub(x[3], x[1]);
}

template <class L>
DDI_INLINE void input_points(const typename L::V (&x)[6], typename L::V (&t)[6]) {
  using V = typename L::V;
  constexpr float a = kWinogradA, b = kWinogradB;
  const V va = L::set(a), vb = L::set(b), a2 = L::set(-a * a), b2 = L::set(-b * b);
  const V sum = L::set(-a * a - b * b), product = L::set(a * a * b * b);
  const V even_a = L::madd(b2, x[2], x[4]), odd_a = L::mul(va, L::madd(b2, x[1], x[3]));
  const V even_b = L::madd(a2, x[2], x[4]), odd_b = L::mul(vb, L::madd(a2, x[1], x[3]));
  t[0] = L::madd(product, x[0], L::madd(sum, x[2], x[4]));
  t[1] = L::add(even_a, odd_a);
  t[2] = L::sub(even_a, odd_a);
  t[3] = L::add(even_b, odd_b);
  t[4] = L::sub(even_b, odd_b);
  t[5] = L::madd(product, x[1], L::madd(sum, x[3], x[5]));
}

// A^T x.
template <class L>
DDI_INLINE void output_points(const typename L::V (&x)[4], typename L::V (&y)[2]) {
  y[0] = L::add(x[0], L::add(x[1], x[2]));
  y[1] = L::add(L::sub(x[1], x[2]), x[3]);
}

template <class L, int M>
DDI_INLINE void output_points(const typename L::V (&x)[6], typename L::V (&y)[M]) {
  using V = typename L::V;
  constexpr float a = kWinogradA, b = kWinogradB;
  const V p = L::add(x[1], x[2]), q = L::sub(x[1], x[2]);
  const V r = L::add(x[3], x[4]), s = L::sub(x[3], x[4]);
  y[0] = L::add(x[0], L::add(p, r));
  y[1] = L::madd(L::set(b), s, L::mul(L::set(a), q));
  if constexpr (M == 3) {
    y[2] = L::madd(L::set(b * b), r, L::madd(L::set(a * a), p, x[5]));
  } else {
    y[2] = L::madd(L::set(b * b), r, L::mul(L::set(a * a), p));
    y[3] = L::madd(L::set(b * b * b), s, L::madd(L::set(a * a * a), q, x[5]));
  }
}

// Elements [c, c + kCount) of one tile, whose columns are at[] from each row.
template <class L, int kSide>
DDI_INLINE void input_tile(const WinogradInput& t, const int64_t (&at)[kSide], int64_t n, int64_t c,
                           float* out) {
  using V = typename L::V;
  V down[kSide][kSide];  // by column
  DDI_UNROLL
  for (int j = 0; j < kSide; ++j) {
    V x[kSide];
    DDI_UNROLL
    for (int i = 0; i < kSide; ++i) x[i] = L::load(t.row[i] + at[j] + c, n);
    input_points<L>(x, down[j]);
  }
  DDI_UNROLL
  for (int i = 0; i < kSide; ++i) {
    V x[kSide], y[kSide];
    DDI_UNROLL
    for (int j = 0; j < kSide; ++j) x[j] = down[j][i];
    input_points<L>(x, y);
    DDI_UNROLL
    for (int j = 0; j < kSide; ++j) {
      L::store(out + (i * kSide + j) * t.position_stride + c, L::kCount, y[j]);
    }
  }
}

template <class L, int M>
void winograd_input(const WinogradInput& t) {
  constexpr int kSide = winograd_side(M);
  for (int64_t k = 0; k < t.tiles; ++k) {
    int64_t at[kSide];
    for (int j = 0; j < kSide; ++j) {
      const int64_t column = k * M + j;
      at[j] = (column < t.columns ? column : t.columns - 1) * t.pixel_stride;
    }
    float* out = t.out + k * t.tile_stride;
    int64_t c = 0;
    for (; c + L::kCount <= t.elements; c += L::kCount) {
      input_tile<L, kSide>(t, at, L::kCount, c, out);
    }
    if (c < t.elements) input_tile<L, kSide>(t, at, t.elements - c, c, out);
  }
}

// Lanes [c, c + kCount) of the panels of one tile: bias, scale, residual, activation, and the
// pixels that exist.
template <class L, int M>
DDI_INLINE void output_tile(const WinogradOutput& t, int64_t tile, int64_t c, int64_t at,
                            int64_t n) {
  using V = typename L::V;
  constexpr int kSide = winograd_side(M);
  const float* in = t.in + tile * t.tile_stride + c;
  V across[kSide][M];  // by row
  DDI_UNROLL
  for (int i = 0; i < kSide; ++i) {
    V x[kSide];
    DDI_UNROLL
    for (int j = 0; j < kSide; ++j) {
      x[j] = L::load(in + (i * kSide + j) * t.position_stride, L::kCount);
    }
    output_points<L>(x, across[i]);
  }
  const V bias = L::load(t.bias + c, L::kCount);
  const int64_t columns = t.columns - tile * M;
  DDI_UNROLL
  for (int j = 0; j < M; ++j) {
    if (j >= columns) break;
    V x[kSide], y[M];
    DDI_UNROLL
    for (int i = 0; i < kSide; ++i) x[i] = across[i][j];
    output_points<L>(x, y);
    DDI_UNROLL
    for (int i = 0; i < M; ++i) {
      if (i >= t.rows) break;
      const int64_t to = i * t.row_stride + (tile * M + j) * t.pixel_stride + at;
      V v = L::add(y[i], bias);
      if (t.scale != nullptr) v = L::mul(v, L::load(t.scale + c, L::kCount));
      if (t.residual != nullptr) v = L::add(v, L::load(t.residual + to, n));
      L::store(t.out + to, n, L::activate(v, t.relu));
    }
  }
}

template <class L, int M>
void winograd_output(const WinogradOutput& t) {
  for (int64_t tile = 0; tile < t.tiles; ++tile) {
    for (int64_t v = 0; v < t.panels; ++v) {
      const int64_t lanes = v + 1 < t.panels ? kLanes : t.last_lanes;
      for (int64_t l = 0; l < lanes; l += L::kCount) {
        output_tile<L, M>(t, tile, v * kLanes + l, t.out_at[v] + l, lanes - l);
      }
    }
  }
}

}  // namespace
}  // namespace ddi
