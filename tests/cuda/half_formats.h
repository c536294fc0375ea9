// bfloat16 and binary16 as 16-bit words, from and to float; rounded to the nearest, ties to even.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulate {

inline float from_bf16(uint32_t bits) {
  const uint32_t word = bits << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

inline uint32_t to_bf16(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  if (value != value) return 0x7fff;
  return (word + 0x7fff + ((word >> 16) & 1)) >> 16;
}

// What is too large is infinite.
inline uint32_t to_f16(float value) {
  if (value != value) return 0x7fff;
  const uint32_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (size >= 65520.f) return sign | 0x7c00;
  const int exponent = std::max(size == 0.f ? -14 : std::ilogb(size), -14);
  const uint32_t steps = static_cast<uint32_t>(std::lrint(std::ldexp(size, 10 - exponent)));
  // A carry into the exponent is the next binade's first number.
  return sign | ((static_cast<uint32_t>(exponent + 14) << 10) + steps);
}

inline float from_f16(uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31), steps = static_cast<int>(bits & 1023);
  float size = std::ldexp(static_cast<float>(exponent == 0 ? steps : 1024 + steps),
                          std::max(exponent, 1) - 25);
  if (exponent == 31) size = steps == 0 ? INFINITY : NAN;
  return bits & 0x8000 ? -size : size;
}

}  // namespace emulate
