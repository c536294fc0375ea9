// Cells of compact activations in plain C++, for the drivers and the scalar micro-kernels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "micro.h"

namespace ddi {

inline uint32_t channel_bits(bf16 v) { return v.bits; }
inline uint32_t channel_bits(int8_t v) { return static_cast<uint8_t>(v); }

// The cell of channel(0), channel(1), ..., of which there may be more or fewer than a cell holds.
template <class T, class Channel>
typename Types<T>::Cell pack_cell(int64_t channels, const Channel& channel) {
  constexpr int kPack = Types<T>::kPack;
  if constexpr (kPack == 1) {
    return to_float(channel(0));
  } else {
    typename Types<T>::Cell cell = Types<T>::kZero;
    for (int64_t j = 0; j < std::min<int64_t>(channels, kPack); ++j) {
      cell ^= channel_bits(channel(j)) << (32 / kPack * j);
    }
    return cell;
  }
}

}  // namespace ddi
