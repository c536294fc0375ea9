// ddi::active_channels for CUDA: the open channels of each sample, ascending, then the pad entry
// (active_channels.cuh). The counts stay on the device.
#include "active_channels.cuh"

#include <limits>
#include <tuple>

#include "common.cuh"

namespace ddi {
namespace {

std::tuple<Tensor, Tensor> active_channels_cuda(const Tensor& open, int64_t channels,
                                                int64_t group_size) {
  constexpr const char* kOp = "active_channels";
  check_cuda(kOp, "open", open, open);
  check_dim(kOp, "open", open, 2, "bool[N, G]");
  check_dtype(kOp, "open", open, ScalarType::Bool);
  STD_TORCH_CHECK(channels >= 1 && channels < std::numeric_limits<int32_t>::max(), kOp,
                  ": channels is ", channels, "; expected 1 to 2^31 - 2");
  STD_TORCH_CHECK(group_size >= 1, kOp, ": group_size is ", group_size, "; expected at least 1");
  const int64_t samples = open.size(0), groups = (channels - 1) / group_size + 1;
  check_shape(kOp, "open", open, {samples, groups});
  STD_TORCH_CHECK(samples <= INT32_MAX, kOp, ": open has ", samples,
                  " samples; expected at most 2^31 - 1");
  const torch::stable::accelerator::DeviceGuard guard(open.get_device_index());
  Tensor index = new_tensor(open, {samples, channels}, ScalarType::Int);
  Tensor count = new_tensor(open, {samples}, ScalarType::Int);
  if (samples > 0) {
    const Tensor bits = as_dense(open, MemoryFormat::Contiguous);
    active_channels_kernel<Rest::kPad><<<static_cast<unsigned>(samples), kListThreads, 0,
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
