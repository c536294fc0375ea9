// Tensors on torch's stable ABI, whatever device they are on: checks whose messages name operator,
// argument, what came and what is allowed; memory formats; allocation.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <algorithm>
#include <initializer_list>
#include <sstream>
#include <string>
#include <vector>

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

inline int32_t shim_dtype(const Tensor& t) {
  int32_t code;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &code));
  return code;
}

inline bool has_dtype(const Tensor& t, ScalarType dtype) {
  return shim_dtype(t) == shim_dtype(dtype);
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

// Before torch 2.13 the lists have no comparison of their own.
inline bool same_sizes(Sizes a, Sizes b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

inline void check_shape(const char* op, const char* name, const Tensor& t, Sizes sizes) {
  STD_TORCH_CHECK(same_sizes(t.sizes(), sizes), op, ": ", name, " has shape ", shape_of(t),
                  "; expected ", shape_of(sizes));
}

inline bool is_half(ScalarType dtype) {
  return dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
}

// Whether the dimensions listed, fastest first, are dense; those left out may lie any distance
// apart.
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

// Whether each sample by itself is dense in this format, whatever lies between samples.
inline bool samples_are_dense(const Tensor& x, MemoryFormat format) {
  if (format == MemoryFormat::ChannelsLast) return dense_in_order(x, {1, 3, 2});
  int64_t expected = 1;
  for (int64_t d = x.dim() - 1; d > 0; --d) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

// An unwritten tensor. Straight through the C shim: torch::stable::empty looks its operator up by
// name, which takes longer than a small gate.
inline Tensor new_strided(Sizes sizes, int32_t dtype, MemoryFormat format, int32_t device_type,
                          int32_t device) {
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
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes.data(), strides.data(), dtype,
                                                  device_type, device, &handle));
  return Tensor(handle);
}

}  // namespace ddi
