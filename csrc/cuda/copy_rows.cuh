// Copies whole samples of any dtype between two tensors, named by an index on the device. A sample
// is a row of bytes in the tensors' common layout; threads move it in the widest words (16 bytes
// down to 1) that addresses, length and distances allow. Nothing waits for the index.
#pragma once

#include <cassert>

#include "common.cuh"

namespace ddi {

// Samples that lie `stride_bytes` apart.
struct Rows {
  void* data;
  int64_t count, stride_bytes;
};

// Row i of the shorter tensor is row index[i] of the longer one.
enum class Copy { kGather, kScatter };

template <class Word, Copy kCopy>
__global__ void __launch_bounds__(256)
    copy_rows_kernel(const Word* __restrict__ from, int64_t from_stride, Word* __restrict__ to,
                     int64_t to_stride, int64_t length, const int64_t* __restrict__ index,
                     int64_t longer) {
  const int64_t row = blockIdx.x, named = index[row];
  assert(named >= 0 && named < longer && "samples: index out of range");
  const Word* source = from + (kCopy == Copy::kGather ? named : row) * from_stride;
  Word* target = to + (kCopy == Copy::kGather ? row : named) * to_stride;
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.x;
  for (int64_t i = blockIdx.y * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < length;
       i += step)
    target[i] = source[i];
}

template <class Word, Copy kCopy>
void copy_rows_as(const Rows& from, const Rows& to, int64_t bytes, const int64_t* index,
                  cudaStream_t stream) {
  constexpr int kThreads = 256, kMostPieces = 1024;
  constexpr int64_t kBytes = sizeof(Word);
  const int64_t length = bytes / kBytes, pieces = (length + kThreads - 1) / kThreads;
  const bool gather = kCopy == Copy::kGather;
  const dim3 grid(static_cast<unsigned>(gather ? to.count : from.count),
                  static_cast<unsigned>(pieces < kMostPieces ? pieces : kMostPieces));
  copy_rows_kernel<Word, kCopy><<<grid, kThreads, 0, stream>>>(
      static_cast<const Word*>(from.data), from.stride_bytes / kBytes, static_cast<Word*>(to.data),
      to.stride_bytes / kBytes, length, index, gather ? from.count : to.count);
}

// Samples of `bytes` each; neither tensor is empty.
template <Copy kCopy>
void copy_rows(const char* op, const Rows& from, const Rows& to, int64_t bytes,
               const int64_t* index, cudaStream_t stream) {
  const uintptr_t all = reinterpret_cast<uintptr_t>(from.data) |
                        reinterpret_cast<uintptr_t>(to.data) |
                        static_cast<uintptr_t>(from.stride_bytes) |
                        static_cast<uintptr_t>(to.stride_bytes) | static_cast<uintptr_t>(bytes);
  if (all % 16 == 0) {
    copy_rows_as<uint4, kCopy>(from, to, bytes, index, stream);
  } else if (all % 4 == 0) {
    copy_rows_as<uint32_t, kCopy>(from, to, bytes, index, stream);
  } else if (all % 2 == 0) {
    copy_rows_as<uint16_t, kCopy>(from, to, bytes, index, stream);
  } else {
    copy_rows_as<uint8_t, kCopy>(from, to, bytes, index, stream);
  }
  check_launch(op);
}

inline Tensor dense_samples(const Tensor& x, MemoryFormat format) {
  return samples_are_dense(x, format) ? x : torch::stable::contiguous(x, format);
}

// The rows of a tensor whose samples are dense.
inline Rows rows_of(const Tensor& x) {
  return {const_cast<void*>(x.const_data_ptr()), x.size(0),
          x.stride(0) * static_cast<int64_t>(x.element_size())};
}

// Checks x and an index of its samples, and returns the index contiguous.
inline Tensor check_samples(const char* op, const Tensor& x, const Tensor& index) {
  STD_TORCH_CHECK(x.dim() >= 1, op, ": x has no dimensions; expected [N, ...]");
  STD_TORCH_CHECK(x.is_cuda(), op, ": x is not on a GPU, but index is; move all to one device");
  check_cuda(op, "index", index, x);
  check_dim(op, "index", index, 1, "[K]");
  check_dtype(op, "index", index, ScalarType::Long);
  STD_TORCH_CHECK(index.numel() <= INT32_MAX, op, ": index has ", index.numel(),
                  " entries; expected at most 2^31 - 1");
  return as_dense(index, MemoryFormat::Contiguous);
}

}  // namespace ddi
