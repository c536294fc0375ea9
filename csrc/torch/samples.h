// What gather_samples and scatter_samples share: checks and the layout of a batch as rows of bytes.
#pragma once

#include "common.h"

namespace ddi {

// Checks a batch and an index into it; returns the index contiguous.
inline Tensor check_samples(const char* op, const Tensor& x, const Tensor& index) {
  STD_TORCH_CHECK(x.dim() >= 1, op, ": x has no dimensions; expected [N, ...]");
  check_cpu(op, "x", x);
  check_cpu(op, "index", index);
  check_dim(op, "index", index, 1, "[K]");
  check_dtype(op, "index", index, ScalarType::Long);
  Tensor places = as_dense(index, MemoryFormat::Contiguous);
  const int64_t* at = places.const_data_ptr<int64_t>();
  for (int64_t k = 0; k < places.numel(); ++k) {
    STD_TORCH_CHECK(at[k] >= 0 && at[k] < x.size(0), op, ": index[", k, "] is ", at[k],
                    "; expected 0 to ", x.size(0) - 1, " for a batch of ", x.size(0));
  }
  return places;
}

inline int64_t stride_bytes(const Tensor& x) {
  return x.stride(0) * static_cast<int64_t>(x.element_size());
}

// Of one sample; the batch is not empty.
inline int64_t sample_bytes(const Tensor& x) {
  return x.numel() / x.size(0) * static_cast<int64_t>(x.element_size());
}

// Threads for memcpy of rows: torch gives each at least four, since small copies are quick.
inline void copy_tasks(int64_t tasks, Task body) {
  torch::stable::parallel_for(0, tasks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

}  // namespace ddi
