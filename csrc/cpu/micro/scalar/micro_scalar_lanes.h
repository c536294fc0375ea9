// A register of one float in plain C++, for code that is written once for all instruction sets.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/dtypes.h"

namespace ddi {
namespace {

struct Lanes {
  using V = float;
  static constexpr int kCount = 1;
  template <class T>
  static V load(const T* src, int64_t) {
    return to_float(*src);
  }
  template <class T>
  static void store(T* dst, int64_t, V v) {
    round_to(v, dst);
  }
  static V set(float a) { return a; }
  static V add(V a, V b) { return a + b; }
  static V sub(V a, V b) { return a - b; }
  static V mul(V a, V b) { return a * b; }
  static V div(V a, V b) { return a / b; }
  static V madd(V a, V b, V c) { return a * b + c; }
  static V activate(V v, bool relu) { return relu && v < 0 ? 0 : v; }
  static V max(V v, V so_far) { return v > so_far || v != v ? v : so_far; }
  static V clamp(V v, float least, float most) { return v < least ? least : v > most ? most : v; }
  static V round(V v) { return std::nearbyint(v); }
  static V power(V v) { return std::ldexp(1.0f, static_cast<int>(v)); }
};

}  // namespace
}  // namespace ddi
