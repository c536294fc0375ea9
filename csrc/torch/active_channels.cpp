// ddi::active_channels for the CPU: checks, allocation, registration.
#include "../cpu/gate/active_channels.h"

#include <limits>
#include <tuple>

#include "common.h"

namespace ddi {
namespace {

std::tuple<Tensor, Tensor> active_channels_cpu(const Tensor& open, int64_t channels,
                                               int64_t group_size) {
  constexpr const char* kOp = "active_channels";
  check_dim(kOp, "open", open, 2, "[N, G]");
  check_dtype(kOp, "open", open, ScalarType::Bool);
  STD_TORCH_CHECK(channels >= 1 && channels < std::numeric_limits<int32_t>::max(), kOp,
                  ": channels is ", channels, "; expected 1 to 2^31 - 2");
  STD_TORCH_CHECK(group_size >= 1, kOp, ": group_size is ", group_size, "; expected at least 1");
  const int64_t samples = open.size(0), groups = (channels - 1) / group_size + 1;
  STD_TORCH_CHECK(open.size(1) == groups, kOp, ": open has shape ", shape_of(open),
                  "; expected [N, ", groups, "] for ", channels, " channels in groups of ",
                  group_size);
  Tensor index = new_tensor({samples, channels}, ScalarType::Int);
  Tensor count = new_tensor({samples}, ScalarType::Int);
  if (samples > 0) {
    const Tensor bits = as_dense(open, MemoryFormat::Contiguous);
    active_channels(static_cast<const uint8_t*>(bits.const_data_ptr()), samples, channels,
                    group_size, index.mutable_data_ptr<int32_t>(),
                    count.mutable_data_ptr<int32_t>());
  }
  return {index, count};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddi, CPU, m) {
  m.impl("active_channels", TORCH_BOX(&active_channels_cpu));
}

}  // namespace ddi
