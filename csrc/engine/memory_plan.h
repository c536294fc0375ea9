// Where the buffers of a network lie in one piece of memory: buffers that are never needed at the
// same time share it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "network.h"

namespace ddi::engine {

// The steps of the trunk from the first to the last that need a buffer, or stand at an exit that
// does.
struct Life {
  int64_t first = INT64_MAX, last = -1;

  void extend(int64_t from, int64_t to) {
    first = std::min(first, from);
    last = std::max(last, to);
  }
  bool meets(const Life& other) const { return first <= other.last && other.first <= last; }
  // Whether what lies in it before a step is read by that step or behind it.
  bool spans(int64_t step) const { return first < step && step <= last; }
};

// Of each buffer.
struct MemoryPlan {
  std::vector<Life> lives;
  std::vector<int64_t> sample_bytes;
  std::vector<int64_t> offset;  // in bytes; -1: it needs no memory
  int64_t bytes = 0;            // of all together
};

// For runs of up to n samples.
MemoryPlan plan_memory(const Network& network, int64_t n);

}  // namespace ddi::engine
