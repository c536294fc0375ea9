// What the steps of the engine have in common: how a value of a frame becomes a driver's argument,
// and what a plan must not say of it.
#pragma once

#include <algorithm>
#include <string>

#include "base/arena.h"
#include "micro/micro_elementwise.h"
#include "op.h"

namespace ddi::engine {

constexpr int64_t kNone = -1;  // in the place of a value that is left out

// Sets x to an image of the frame.
template <class T>
void set_input(const Frame& frame, int64_t value, const T** x, int64_t* stride) {
  const Buffer& b = frame.graph.buffer_of(value);
  *x = frame.at<T>(value);
  stride[0] = b.numel();
  stride[1] = 1;
  stride[2] = b.w * b.channels;
  stride[3] = b.channels;
}

inline Activation activation_of(Words& words) {
  return static_cast<Activation>(words.integer(0, kActivations - 1, "activation"));
}

inline void check_size(Words& words, int64_t value, int64_t h, int64_t w) {
  const Buffer& b = words.graph().buffer_of(value);
  if (b.h != h || b.w != w) words.fail("the output's size is not the operation's");
}

// The whole of a buffer: what drivers write without strides of their own.
inline void check_whole(Words& words, int64_t value, const char* what) {
  const Graph& graph = words.graph();
  if (graph.values[value].channels != graph.buffer_of(value).channels) {
    words.fail(std::string(what) + " is a part of a buffer");
  }
}

// Bits of a frame as drivers take them, sample after sample: copied to `room` if the value is a
// part of wider ones.
inline const uint8_t* dense_bits(const Frame& frame, int64_t value, void* room) {
  const int64_t count = frame.graph.values[value].channels, stride = frame.stride(value);
  const uint8_t* bits = frame.at<uint8_t>(value);
  if (frame.n == 1 || count == stride) return bits;
  uint8_t* dense = static_cast<uint8_t*>(room);
  for (int64_t n = 0; n < frame.n; ++n) std::copy_n(bits + n * stride, count, dense + n * count);
  return dense;
}

// The room that they take, none for kNone.
inline int64_t dense_bits_bytes(int64_t value, int64_t count, int64_t n) {
  return value == kNone ? 0 : round_up(n * count, 64);
}

inline int64_t count_open(const Frame& frame, int64_t mask, int64_t sample, int64_t channels,
                          int64_t group_size) {
  if (mask == kNone) return channels;
  const uint8_t* open = frame.at<uint8_t>(mask) + sample * frame.stride(mask);
  int64_t count = 0;
  for (int64_t c = 0, g = 0; c < channels; c += group_size, ++g) {
    if (open[g] != 0) count += std::min(group_size, channels - c);
  }
  return count;
}

}  // namespace ddi::engine
