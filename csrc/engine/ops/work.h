// What the steps of a network do to a sample, as budgets count it.
#pragma once

#include <cstdint>

namespace ddi::engine {

// Multiply-adds, and the bytes of the weights and of the activations that they read and write.
struct Work {
  int64_t macs = 0, weight_bytes = 0, activation_bytes = 0;

  Work& operator+=(const Work& other) {
    macs += other.macs;
    weight_bytes += other.weight_bytes;
    activation_bytes += other.activation_bytes;
    return *this;
  }
};

// By joules per multiply-add, byte of weights and byte of activations, none of them negative. Rises
// with each count even as it is rounded: work that fits a limit fits it with less of any kind, too.
inline double joules(const Work& work, const double* energy) {
  return energy[0] * static_cast<double>(work.macs) +
         energy[1] * static_cast<double>(work.weight_bytes) +
         energy[2] * static_cast<double>(work.activation_bytes);
}

}  // namespace ddi::engine
