// From float to int8, the same on every instruction set.
#pragma once

#include <cstdint>

namespace ddi {

// dst = src / scale, rounded to nearest even and clamped; NaN becomes 0.
inline void quantize(const float* src, int64_t count, float scale, int8_t* dst) {
  for (int64_t i = 0; i < count; ++i) {
    float v = src[i] / scale;
    v = v > 127.0f ? 127.0f : v;
    v = v < -128.0f ? -128.0f : v;
    v = v != v ? 0.0f : v;
    // Of a float this large the last digit is worth one: the sum is rounded as wanted.
    constexpr float kRound = 12582912.0f;
    dst[i] = static_cast<int8_t>(static_cast<int32_t>(v + kRound - kRound));
  }
}

}  // namespace ddi
