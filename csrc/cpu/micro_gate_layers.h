// The micro-kernels of gates for all instruction sets with registers of float, for a Lanes that
// says what a register is:
//   V                               a register of kCount floats
//   load(src, n), store(dst, n, v)  of the first n; whole registers from n = kCount on; absent
//                                   lanes are 0
//   set(a), add(a, b), sub(a, b), mul(a, b), div(a, b)
//   madd(a, b, c)                   a * b + c
//   clamp(v, most)                  to [-most, most], NaN kept
//   round(v), power(v)              to the nearest integer; 2^v of an integer, |v| < 127
//   sum(v)                          of all lanes
// Included inside target regions, after all others; see isa_region.h.
#pragma once

namespace ddi {
namespace {

// Rows [row, row + R) at a time, which hides the latency of their sums.
template <class L, int R>
DDI_INLINE void linear_rows(const Linear<float>& a, int64_t row) {
  using V = typename L::V;
  const float* w = a.weight + row * a.ins;
  V acc[R];
  DDI_UNROLL
  for (int r = 0; r < R; ++r) acc[r] = L::set(0);
  for (int64_t i = 0; i < a.ins; i += L::kCount) {
    const V in = L::load(a.in + i, a.ins - i);
    DDI_UNROLL
    for (int r = 0; r < R; ++r) {
      acc[r] = L::madd(L::load(w + r * a.ins + i, a.ins - i), in, acc[r]);
    }
  }
  DDI_UNROLL
  for (int r = 0; r < R; ++r) {
    const float sum = L::sum(acc[r]) + a.bias[row + r];
    a.out[row + r] = a.add ? a.out[row + r] + sum : sum;
  }
}

template <class L>
void linear(const Linear<float>& layer) {
  int64_t row = 0;
  for (; row + 4 <= layer.outs; row += 4) linear_rows<L, 4>(layer, row);
  for (; row < layer.outs; ++row) linear_rows<L, 1>(layer, row);
}

// e^v - 1 to a few units in the last place, also near 0. v = n log 2 + r with |r| <= log(2) / 2,
// and e^r - 1 = r + r^2 q(r), q fitted to the least relative error, 1.4e-8. Beyond +-87, where
// floats end, it is that of +-87.
template <class L>
DDI_INLINE typename L::V exp_minus_1(typename L::V v) {
  using V = typename L::V;
  constexpr float kHigh = 0.693359375f, kLow = -2.12194440e-4f;  // log 2; n * kHigh is exact
  v = L::clamp(v, 87.0f);
  const V n = L::round(L::mul(v, L::set(1.44269504f)));
  const V r = L::madd(n, L::set(-kLow), L::madd(n, L::set(-kHigh), v));
  V q = L::madd(r, L::set(0.00138825166f), L::set(0.00836654752f));
  q = L::madd(q, r, L::set(0.0416672006f));
  q = L::madd(q, r, L::set(0.166665435f));
  q = L::madd(q, r, L::set(0.49999997f));
  const V p = L::madd(L::mul(r, r), q, r), scale = L::power(n);
  return L::madd(scale, p, L::sub(scale, L::set(1)));
}

// 1 / (1 + e^-v)
template <class L>
DDI_INLINE typename L::V sigmoid(typename L::V v) {
  const typename L::V e = exp_minus_1<L>(L::sub(L::set(0), v));
  return L::div(L::set(1), L::add(L::set(2), e));
}

// (e^2v - 1) / (e^2v + 1)
template <class L>
DDI_INLINE typename L::V tanh(typename L::V v) {
  const typename L::V e = exp_minus_1<L>(L::add(v, v));
  return L::div(e, L::add(e, L::set(2)));
}

template <class L>
void lstm(const float* gates, const float* c, int64_t hidden, float* c_next, float* h_next) {
  using V = typename L::V;
  for (int64_t j = 0; j < hidden; j += L::kCount) {
    const int64_t n = hidden - j;
    const V in = sigmoid<L>(L::load(gates + j, n));
    const V forget = sigmoid<L>(L::load(gates + hidden + j, n));
    const V cell = tanh<L>(L::load(gates + 2 * hidden + j, n));
    const V out = sigmoid<L>(L::load(gates + 3 * hidden + j, n));
    const V next = L::madd(forget, L::load(c + j, n), L::mul(in, cell));
    L::store(c_next + j, n, next);
    L::store(h_next + j, n, L::mul(out, tanh<L>(next)));
  }
}

}  // namespace
}  // namespace ddi
