// Exponentials for all instruction sets, for a Lanes that says what a register is:
//   V                               a register of kCount floats
//   load(src, n), store(dst, n, v)  of the first n, of any type in memory; whole registers from
//                                   n = kCount on; absent lanes are 0
//   set(a), add(a, b), sub(a, b), mul(a, b), div(a, b)
//   madd(a, b, c)                   a * b + c
//   activate(v, relu)
//   clamp(v, least, most)           NaN kept
//   round(v), power(v)              to the nearest integer; 2^v of an integer, |v| < 127
//   sum(v)                          of all lanes
// Included inside target regions, after the header that holds Lanes; see isa_region.h.
#pragma once

namespace ddi {
namespace {

// e^v - 1 to a few units in the last place, also near 0. v = n log 2 + r with |r| <= log(2) / 2,
// and e^r - 1 = r + r^2 q(r), q fitted to the least relative error, 1.4e-8. Beyond +-87, where
// floats end, it is that of +-87.
template <class L>
DDI_INLINE typename L::V exp_minus_1(typename L::V v) {
  using V = typename L::V;
  constexpr float kHigh = 0.693359375f, kLow = -2.12194440e-4f;  // log 2; n * kHigh is exact
  v = L::clamp(v, -87.0f, 87.0f);
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

}  // namespace
}  // namespace ddi
