// What the operators share at the border to torch: argument checks whose messages name operator,
// argument, what came and what is allowed; memory formats; threads. Stable ABI only, so that one
// build serves every torch from 2.10 on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "../cpu/parallel.h"

namespace ddi {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;  // borrowed: checks allocate nothing

inline std::string shape_of(Sizes sizes) {
  std::ostringstream text;
  text << '[';
  for (size_t d = 0; d < sizes.size(); ++d) text << (d == 0 ? "" : ", ") << sizes[d];
  text << ']';
  return text.str();
}

inline std::string shape_of(const Tensor& t) { return shape_of(t.sizes()); }

// A dtype as the C shim has it: quicker to compare with than a tensor's ScalarType, which torch
// finds by trying one after the other.
inline int32_t shim_dtype(ScalarType dtype) {
  return torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
}

inline bool has_dtype(const Tensor& t, ScalarType dtype) {
  int32_t code;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &code));
  return code == shim_dtype(dtype);
}

inline void check_cpu(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.is_cpu(), op, ": ", name,
                  " is not on the CPU, but other arguments are; move all to one device");
}

inline void check_dim(const char* op, const char* name, const Tensor& t, int64_t dim,
                      const char* shape) {
  STD_TORCH_CHECK(t.dim() == dim, op, ": ", name, " has ", t.dim(), " dimensions (shape ",
                  shape_of(t), "); expected ", shape);
}

inline void check_dtype(const char* op, const char* name, const Tensor& t, ScalarType dtype) {
  STD_TORCH_CHECK(has_dtype(t, dtype), op, ": ", name, " has dtype ",
                  torch::headeronly::toString(t.scalar_type()), "; expected ",
                  torch::headeronly::toString(dtype));
}

inline void check_shape(const char* op, const char* name, const Tensor& t, Sizes sizes) {
  STD_TORCH_CHECK(t.sizes() == sizes, op, ": ", name, " has shape ", shape_of(t), "; expected ",
                  shape_of(sizes));
}

inline bool is_half(ScalarType dtype) {
  return dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
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

// Whether dimensions from `first` on are dense, those listed varying fastest first.
inline bool dense_in_order(const Tensor& t, std::initializer_list<int64_t> fastest_first) {
  const Sizes sizes = t.sizes(), strides = t.strides();
  int64_t expected = 1;
  for (int64_t d : fastest_first) {
    if (sizes[d] != 1 && strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

// torch's choice of an output's format: channels_last if x is dense in that order and in no other.
inline MemoryFormat format_of(const Tensor& x) {
  const bool channels_last = x.dim() == 4 && !x.is_contiguous() && dense_in_order(x, {1, 3, 2, 0});
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline bool is_dense(const Tensor& t, MemoryFormat format) {
  return format == MemoryFormat::ChannelsLast ? t.dim() == 4 && dense_in_order(t, {1, 3, 2, 0})
                                              : t.is_contiguous();
}

// t itself if it is dense in this format, else a copy that is.
inline Tensor as_dense(const Tensor& t, MemoryFormat format) {
  return is_dense(t, format) ? t : torch::stable::contiguous(t, format);
}

// An unwritten CPU tensor. Straight through the C shim: torch::stable::empty looks its operator up
// by name, which takes longer than a small gate.
inline Tensor new_tensor(Sizes sizes, ScalarType dtype,
                         MemoryFormat format = MemoryFormat::Contiguous) {
  const int64_t dims = static_cast<int64_t>(sizes.size());
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  const auto place = [&](int64_t d) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  };
  if (format == MemoryFormat::ChannelsLast) {
    for (int64_t d : {1, 3, 2, 0}) place(d);
  } else {
    for (int64_t d = dims - 1; d >= 0; --d) place(d);
  }
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes.data(), strides.data(),
                                                  shim_dtype(dtype), aoti_torch_device_type_cpu(),
                                                  0, &handle));
  return Tensor(handle);
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
