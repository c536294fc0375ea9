// ddi::active_channels for CUDA: the open channels of each sample, ascending, then the pad entry.
// A block of threads lists one sample: 256 channels a step, placed by the votes of its warps, so
// that the order needs no sort. The counts stay on the device.
#include <limits>
#include <tuple>

#include "common.cuh"

namespace ddi {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

__global__ void __launch_bounds__(kThreads)
    active_channels_kernel(const uint8_t* __restrict__ open, int channels, int64_t group_size,
                           int64_t groups, int32_t* __restrict__ index,
                           int32_t* __restrict__ count) {
  __shared__ int votes[kWarps];
  const int64_t n = blockIdx.x;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int32_t* list = index + n * channels;
  int listed = 0;
  // 64-bit: the last step may pass the largest int.
  for (int64_t first = 0; first < channels; first += kThreads) {
    const int64_t c = first + threadIdx.x;
    const bool is_open = c < channels && open[n * groups + c / group_size] != 0;
    const unsigned vote = __ballot_sync(0xffffffffu, is_open);
    if (lane == 0) votes[warp] = __popc(vote);
    __syncthreads();
    int before = 0, all = 0;
    for (int w = 0; w < kWarps; ++w) {
      before += w < warp ? votes[w] : 0;
      all += votes[w];
    }
    if (is_open) list[listed + before + __popc(vote & ((1u << lane) - 1))] = static_cast<int>(c);
    listed += all;
    __syncthreads();
  }
  for (int64_t i = listed + threadIdx.x; i < channels; i += kThreads) list[i] = channels;
  if (threadIdx.x == 0) count[n] = listed;
}

Tensor new_ints(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::new_empty(like, sizes, ScalarType::Int);
}

std::tuple<Tensor, Tensor> active_channels_cuda(const Tensor& open, int64_t channels,
                                                int64_t group_size) {
  constexpr const char* kOp = "active_channels";
  STD_TORCH_CHECK(open.is_cuda() && open.dim() == 2 && open.scalar_type() == ScalarType::Bool, kOp,
                  ": open has ", open.dim(), " dimensions and dtype ",
                  torch::headeronly::toString(open.scalar_type()),
                  "; expected bool[N, G] on a GPU");
  STD_TORCH_CHECK(channels >= 1 && channels < std::numeric_limits<int32_t>::max(), kOp,
                  ": channels is ", channels, "; expected 1 to 2^31 - 2");
  STD_TORCH_CHECK(group_size >= 1, kOp, ": group_size is ", group_size, "; expected at least 1");
  const int64_t samples = open.size(0), groups = (channels - 1) / group_size + 1;
  STD_TORCH_CHECK(open.size(1) == groups, kOp, ": open has shape [", samples, ", ", open.size(1),
                  "]; expected [N, ", groups, "] for ", channels, " channels in groups of ",
                  group_size);
  STD_TORCH_CHECK(samples <= INT32_MAX, kOp, ": open has ", samples,
                  " samples; expected at most 2^31 - 1");
  const torch::stable::accelerator::DeviceGuard guard(open.get_device_index());
  Tensor index = new_ints(open, {samples, channels}), count = new_ints(open, {samples});
  if (samples > 0) {
    const Tensor bits = open.is_contiguous() ? open : torch::stable::contiguous(open);
    active_channels_kernel<<<static_cast<unsigned>(samples), kThreads, 0,
                             current_stream(kOp, open.get_device_index())>>>(
        static_cast<const uint8_t*>(bits.const_data_ptr()), static_cast<int>(channels), group_size,
        groups, index.mutable_data_ptr<int32_t>(), count.mutable_data_ptr<int32_t>());
    check_launch(kOp);
  }
  return {index, count};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddi, CUDA, m) {
  m.impl("active_channels", TORCH_BOX(&active_channels_cuda));
}

}  // namespace ddi
