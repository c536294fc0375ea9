// ddi::gather_samples for CUDA: rows = x[index], a copy of whole samples of any dtype. A sample is
// a row of bytes in x's own layout; threads move it in the widest words (16 bytes down to 1) that
// its address, length and distance to the next one allow. The index stays on the device: nothing
// waits.
#include <cassert>

#include "common.cuh"

namespace ddi {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocksPerRow = 1024;

// Grid (rows, pieces of a row).
template <class Word>
__global__ void __launch_bounds__(kThreads)
    gather_rows_kernel(const Word* __restrict__ x, int64_t samples, int64_t stride, int64_t length,
                       const int64_t* __restrict__ index, Word* __restrict__ rows) {
  const int64_t row = blockIdx.x;
  const int64_t sample = index[row];
  assert(sample >= 0 && sample < samples && "gather_samples: index out of range");
  const Word* from = x + sample * stride;
  Word* to = rows + row * length;
  const int64_t step = static_cast<int64_t>(gridDim.y) * kThreads;
  for (int64_t i = blockIdx.y * static_cast<int64_t>(kThreads) + threadIdx.x; i < length; i += step)
    to[i] = from[i];
}

struct Rows {
  const void* x;
  int64_t samples, stride_bytes, bytes;
  const int64_t* index;
  int64_t count;
  void* rows;
};

template <class Word>
void gather_rows(const Rows& r, cudaStream_t stream) {
  constexpr int64_t kBytes = sizeof(Word);
  const int64_t length = r.bytes / kBytes;
  const int64_t pieces = (length + kThreads - 1) / kThreads;
  const dim3 grid(static_cast<unsigned>(r.count),
                  static_cast<unsigned>(pieces < kMaxBlocksPerRow ? pieces : kMaxBlocksPerRow));
  gather_rows_kernel<<<grid, kThreads, 0, stream>>>(static_cast<const Word*>(r.x), r.samples,
                                                    r.stride_bytes / kBytes, length, r.index,
                                                    static_cast<Word*>(r.rows));
}

// Whether each sample by itself is dense in this format, whatever lies between samples.
bool samples_are_dense(const Tensor& x, MemoryFormat format) {
  if (format == MemoryFormat::ChannelsLast) return dense_in_order(x, {1, 3, 2});
  int64_t expected = 1;
  for (int64_t d = x.dim() - 1; d > 0; --d) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

Tensor gather_samples_cuda(const Tensor& x, const Tensor& index) {
  constexpr const char* kOp = "gather_samples";
  STD_TORCH_CHECK(x.dim() >= 1, kOp, ": x has no dimensions; expected [N, ...]");
  STD_TORCH_CHECK(x.is_cuda(), kOp, ": x is not on a GPU, but index is; move all to one device");
  check_cuda(kOp, "index", index, x);
  STD_TORCH_CHECK(index.dim() == 1 && index.scalar_type() == ScalarType::Long, kOp, ": index has ",
                  index.dim(), " dimensions and dtype ",
                  torch::headeronly::toString(index.scalar_type()), "; expected int64[K]");
  STD_TORCH_CHECK(index.numel() <= INT32_MAX, kOp, ": index has ", index.numel(),
                  " entries; expected at most 2^31 - 1");
  const MemoryFormat format = format_of(x);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes[0] = index.numel();
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor rows = new_tensor(x, sizes, format);
  if (rows.numel() == 0) return rows;
  STD_TORCH_CHECK(x.size(0) > 0, kOp, ": index names samples of an empty batch");
  const Tensor dense = samples_are_dense(x, format) ? x : torch::stable::contiguous(x, format);
  const Tensor places = index.is_contiguous() ? index : torch::stable::contiguous(index);
  const int64_t width = static_cast<int64_t>(x.element_size());
  const Rows r{dense.const_data_ptr(),           x.size(0),
               dense.stride(0) * width,          rows.numel() / sizes[0] * width,
               places.const_data_ptr<int64_t>(), sizes[0],
               rows.mutable_data_ptr()};
  const uintptr_t all = reinterpret_cast<uintptr_t>(r.x) | reinterpret_cast<uintptr_t>(r.rows) |
                        static_cast<uintptr_t>(r.stride_bytes) | static_cast<uintptr_t>(r.bytes);
  const cudaStream_t stream = current_stream(kOp, x.get_device_index());
  if (all % 16 == 0) {
    gather_rows<uint4>(r, stream);
  } else if (all % 4 == 0) {
    gather_rows<uint32_t>(r, stream);
  } else if (all % 2 == 0) {
    gather_rows<uint16_t>(r, stream);
  } else {
    gather_rows<uint8_t>(r, stream);
  }
  check_launch(kOp);
  return rows;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddi, CUDA, m) {
  m.impl("gather_samples", TORCH_BOX(&gather_samples_cuda));
}

}  // namespace ddi
