// What the CUDA operators share: stream and device of a tensor, allocation, launch errors. Stable
// ABI only, and nothing that needs a CUDA build of torch to link: the library loads beside CPU
// torch.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../torch/tensors.h"

namespace ddi {

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

// A tensor of this dtype and shape on x's GPU.
inline void check_like(const char* op, const char* name, const Tensor& t, const Tensor& x,
                       ScalarType dtype, Sizes sizes) {
  check_cuda(op, name, t, x);
  check_dtype(op, name, t, dtype);
  check_shape(op, name, t, sizes);
}

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, op,
                  ": the CUDA kernel did not start: ", cudaGetErrorString(error));
}

// An unwritten tensor on like's device.
inline Tensor new_tensor(const Tensor& like, Sizes sizes, ScalarType dtype,
                         MemoryFormat format = MemoryFormat::Contiguous) {
  return new_strided(sizes, shim_dtype(dtype), format, aoti_torch_device_type_cuda(),
                     like.get_device_index());
}

// The same, of its dtype, whichever that is.
inline Tensor new_tensor(const Tensor& like, Sizes sizes, MemoryFormat format) {
  return new_strided(sizes, shim_dtype(like), format, aoti_torch_device_type_cuda(),
                     like.get_device_index());
}

// Dense, and aligned for 16-byte copies: t itself if it is both. A view may begin anywhere.
inline Tensor as_aligned(const Tensor& t, MemoryFormat format) {
  const Tensor dense = as_dense(t, format);
  if (reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 == 0) return dense;
  Tensor copy = new_tensor(t, t.sizes(), format);
  torch::stable::copy_(copy, dense);
  return copy;
}

}  // namespace ddi
