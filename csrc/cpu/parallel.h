// How a driver asks its caller for threads: run body(0) ... body(tasks - 1), in any order and on
// any threads, and return when all are done. Keeps the drivers free of a threading library.
#pragma once

#include <cstdint>
#include <functional>

namespace ddi {

using ParallelFor =
    std::function<void(int64_t tasks, const std::function<void(int64_t task)>& body)>;

}  // namespace ddi
