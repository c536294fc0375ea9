// Where the buffers of a network lie in one piece of memory: buffers that are never needed at the
// same time share it.
#pragma once

#include <vector>

#include "network.h"

namespace ddi::engine {

struct MemoryPlan {
  std::vector<int64_t> offset;  // of each buffer, in bytes; -1: it needs no memory
  int64_t bytes;
};

// For runs of up to n samples.
MemoryPlan plan_memory(const Network& network, int64_t n);

}  // namespace ddi::engine
