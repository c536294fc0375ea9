// Divides work that waits for memory among threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "parallel.h"

namespace ddi {

constexpr int64_t kElementsPerTask = 1 << 15;  // fewer are not worth waking a thread for

// Calls body(begin, end) for ranges that make up [0, rows), up to `threads` of them.
template <class Body>
void split_rows(int64_t rows, int64_t elements_per_row, int64_t threads,
                const ParallelFor& parallel_for, const Body& body) {
  const int64_t worth = rows * elements_per_row / kElementsPerTask;
  const int64_t tasks = std::max<int64_t>(std::min({threads, rows, worth}), 1);
  if (tasks == 1) return body(0, rows);
  parallel_for(tasks, [&](int64_t task) { body(task * rows / tasks, (task + 1) * rows / tasks); });
}

// The same for the pixels of a batch: body(sample, begin, end), ranges that end with their sample.
template <class Body>
void split_pixels(int64_t samples, int64_t pixels, int64_t channels, int64_t threads,
                  const ParallelFor& parallel_for, const Body& body) {
  split_rows(samples * pixels, channels, threads, parallel_for, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin, next; at < end; at = next) {
      const int64_t sample = at / pixels, first = sample * pixels;
      next = std::min(end, first + pixels);
      body(sample, at - first, next - first);
    }
  });
}

}  // namespace ddi
