// What a convolution will read soon, fetched into L2 beside the arithmetic: weights of the next
// panels, inputs of the next row block.
#pragma once

#include <cstdint>

#include "base/arena.h"
#include "micro/micro.h"

namespace ddi {

// Packed panels that the next tiles but one pass will need, each fetched into L2 by one tile of
// this pass: reading them when they are needed would take longer than multiplying by them on small
// maps.
template <class T>
class Ahead {
  using Cell = typename Types<T>::Cell;

 public:
  void clear() {
    count_ = next_ = 0;
    last_ = nullptr;
  }

  void add(const Cell* panel) {
    if (count_ < kMost && panel != last_) panels_[count_++] = last_ = panel;
  }

  const Cell* next() { return next_ < count_ ? panels_[next_++] : nullptr; }

 private:
  static constexpr unsigned kMost = 8;
  const Cell* panels_[kMost];
  const Cell* last_ = nullptr;
  unsigned count_ = 0, next_ = 0;
};

// The inputs of the next row block, fetched into L2 a few lines with every tile of this one. Only
// of channels_last images; closed groups that fill lines are left out.
template <class T>
class Upcoming {
 public:
  Upcoming(const T* begin, const T* end, int64_t channels, const uint8_t* open, int64_t group_size)
      : at_(begin), end_(end), channels_(channels), open_(open), group_size_(group_size) {
    if (group_size < kLine || channels < kLine) open_ = nullptr;
  }

  // Lines to fetch before each of so many tiles; none if that would stall them.
  int64_t per_call(int64_t tiles) const {
    const int64_t lines = ceil_div((end_ - at_) / kLine, tiles);
    return lines <= kMostLines ? lines : 0;
  }

  // The next lines, for a tile that fetches one with each of its steps; nullptr if there are none
  // left.
  const T* take(int64_t lines) {
    if (at_ >= end_) return nullptr;
    const T* first = at_;
    at_ += lines * kLine;
    return first;
  }

  void fetch(int64_t lines) {
    for (; lines > 0 && at_ < end_; --lines, at_ += kLine) {
      if (open_ == nullptr || open_[channel_ / group_size_] != 0) __builtin_prefetch(at_, 0, 2);
      channel_ += kLine;
      while (channel_ >= channels_) channel_ -= channels_;
    }
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(T), kMostLines = 32;
  const T *at_, *end_;
  int64_t channels_, channel_ = 0;
  const uint8_t* open_;
  int64_t group_size_;
};

}  // namespace ddi
