// The micro-kernels of gates for all instruction sets with registers of float. Included inside
// target regions, after all others; see isa_region.h.
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
