// What the CUDA operators share: stream and device of a tensor, allocation, launch errors. Stable
// ABI only, and nothing that needs a CUDA build of torch to link: the library loads beside CPU
// torch.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <vector>

namespace ddi {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// torch's current stream on a device. The function is in libtorch_cuda, which CPU torch has not:
// Python loads libraries with all symbols bound, so a plain reference would keep this one out.
inline cudaStream_t current_stream(const char* op, int32_t device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get =
      reinterpret_cast<Get>(dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
  void* stream = nullptr;
  STD_TORCH_CHECK(get != nullptr && get(device, &stream) == 0, op,
                  ": this process has no CUDA stream; its torch is built without CUDA");
  return static_cast<cudaStream_t>(stream);
}

inline void check_cuda(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == x.get_device_index(), op, ": ", name,
                  " is not on the GPU of the other arguments; move all to one device");
}

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, op,
                  ": the CUDA kernel did not start: ", cudaGetErrorString(error));
}

// Whether the dimensions listed, fastest first, are dense; those left out may lie any distance
// apart.
inline bool dense_in_order(const Tensor& t, std::initializer_list<int64_t> fastest_first) {
  int64_t expected = 1;
  for (int64_t d : fastest_first) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// torch's choice of an output's format: channels_last if x is dense in that order and in no other.
inline MemoryFormat format_of(const Tensor& x) {
  const bool last = x.dim() == 4 && !x.is_contiguous() && dense_in_order(x, {1, 3, 2, 0});
  return last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// An unwritten tensor of like's dtype and device.
inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes,
                         MemoryFormat format) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  const auto place = [&](int64_t d) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  };
  if (format == MemoryFormat::ChannelsLast) {
    for (int64_t d : {1, 3, 2, 0}) place(d);
  } else {
    for (int64_t d = static_cast<int64_t>(sizes.size()) - 1; d >= 0; --d) place(d);
  }
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype,
      aoti_torch_device_type_cuda(), like.get_device_index(), &handle));
  return Tensor(handle);
}

}  // namespace ddi
