// What the operators of the CPU share at the border to torch: checks, allocation, threads. Stable
// ABI only, so that one build serves every torch from 2.10 on.
#pragma once

#include <cstdlib>
#include <memory>

#include "../cpu/base/parallel.h"
#include "tensors.h"

namespace ddi {

inline void check_cpu(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.is_cpu(), op, ": ", name,
                  " is not on the CPU, but other arguments are; move all to one device");
}

// What sums in this dtype are computed and kept in.
inline ScalarType sum_dtype(ScalarType dtype) { return is_half(dtype) ? ScalarType::Float : dtype; }

// float32 or float64: what most kernels are written for.
inline void check_real(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(has_dtype(t, ScalarType::Float) || has_dtype(t, ScalarType::Double), op, ": ",
                  name, " has dtype ", torch::headeronly::toString(t.scalar_type()),
                  "; the native CPU kernel takes float32 and float64, others go through "
                  "ddi_kernels.",
                  op, ", which uses the reference for them");
}

// An unwritten CPU tensor.
inline Tensor new_tensor(Sizes sizes, ScalarType dtype,
                         MemoryFormat format = MemoryFormat::Contiguous) {
  return new_strided(sizes, shim_dtype(dtype), format, aoti_torch_device_type_cpu(), 0);
}

// torch's thread pool as the drivers take it.
inline void parallel_tasks(int64_t tasks, Task body) {
  if (tasks == 1) {
    body(0);
    return;
  }
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Workspace = std::unique_ptr<void, Free>;

inline Workspace new_workspace(const char* op, int64_t bytes) {
  STD_TORCH_CHECK(bytes >= 0, op, ": the arguments' sizes ask for more memory than exists");
  Workspace workspace(std::aligned_alloc(64, static_cast<size_t>((bytes + 64) / 64 * 64)));
  STD_TORCH_CHECK(workspace != nullptr, op, ": could not allocate ", bytes,
                  " bytes of scratch memory");
  return workspace;
}

// Scratch memory aligned to a cache line, for one call of body(void*). What is small stays with
// the calling thread: half a megabyte fresh from the heap at every call costs as much as a gate.
template <class Body>
void with_workspace(const char* op, int64_t bytes, const Body& body) {
  constexpr int64_t kKeep = 4 << 20;
  if (bytes > kKeep) {
    const Workspace workspace = new_workspace(op, bytes);
    body(workspace.get());
    return;
  }
  static thread_local Workspace kept;
  static thread_local int64_t kept_bytes = 0;
  if (kept == nullptr || bytes > kept_bytes) {
    kept.reset();
    kept = new_workspace(op, bytes);
    kept_bytes = bytes;
  }
  body(kept.get());
}

}  // namespace ddi
