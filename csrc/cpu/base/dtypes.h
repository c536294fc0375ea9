// Floating-point numbers of 16 bits as they lie in memory, and their conversions in plain C++:
// rounding to nearest even, infinities and NaN kept. Regions of newer instruction sets have their
// own.
#pragma once

#include <cstdint>
#include <cstring>

namespace ddi {

struct half {  // IEEE 754 binary16
  uint16_t bits;
};

struct bf16 {  // the upper half of a float
  uint16_t bits;
};

inline uint32_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof(bits));
  return bits;
}

inline float float_of(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}

inline float to_float(float v) { return v; }
inline double to_float(double v) { return v; }
inline float to_float(bf16 v) { return float_of(static_cast<uint32_t>(v.bits) << 16); }

inline float to_float(half v) {
  const uint32_t sign = (v.bits & 0x8000u) << 16, rest = v.bits & 0x7fffu;
  if (rest >= 0x7c00u) return float_of(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // Read as a float, its exponent is short of 112, that of a denormal too.
  return float_of(sign | bits_of(float_of(rest << 13) * 0x1p112f));
}

// *out = v, rounded.
inline void round_to(float v, float* out) { *out = v; }
inline void round_to(double v, double* out) { *out = v; }

inline void round_to(float v, bf16* out) {
  const uint32_t bits = bits_of(v);
  const uint32_t rounded = v != v ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u);
  out->bits = static_cast<uint16_t>(rounded >> 16);
}

inline void round_to(float v, half* out) {
  const uint32_t bits = bits_of(v), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  uint32_t magnitude;
  if (v != v) {
    magnitude = 0x7e00u;
  } else if (rest >= 0x477ff000u) {  // from 65520 on
    magnitude = 0x7c00u;
  } else if (rest < 0x38800000u) {  // a denormal: the sum has its unit in the last place, 2^-24
    magnitude = bits_of(float_of(rest) + 0.5f) - 0x3f000000u;
  } else {
    magnitude = (rest + 0xfffu + (rest >> 13 & 1u) - 0x38000000u) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | magnitude);
}

}  // namespace ddi
