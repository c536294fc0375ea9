// ddi::gated_bottleneck for the CPU.
#include "block_parts.h"

namespace ddi {
namespace {

std::tuple<Tensor, Tensor> gated_bottleneck_cpu(
    const Tensor& x, const Tensor& weight1, const OptionalTensor& bias1,
    const OptionalTensor& packed1, const Tensor& weight2, const OptionalTensor& bias2,
    const OptionalTensor& packed2, const Tensor& weight3, const OptionalTensor& bias3,
    const OptionalTensor& packed3, const OptionalTensor& shortcut_weight,
    const OptionalTensor& shortcut_bias, const OptionalTensor& shortcut_packed,
    const OptionalTensor& keep, const OptionalTensor& keep_scale, const OptionalTensor& mask1,
    const OptionalTensor& mask1_scale, int64_t group_size1, const OptionalTensor& mask2,
    const OptionalTensor& mask2_scale, int64_t group_size2, int64_t stride, bool pool,
    const OptionalTensor& x_pooled) {
  std::vector<BlockConv> branch = {
      {"", "1", "1", weight1, bias1, packed1, mask1, mask1_scale, group_size1},
      {"", "2", "2", weight2, bias2, packed2, mask2, mask2_scale, group_size2},
      {"", "3", "", weight3, bias3, packed3, {}, {}},
  };
  for (int i = 0; i < 3; ++i) {
    branch[i].shape.kh = i == 1 ? 3 : 1;
    branch[i].shape.stride_h = i == 1 ? stride : 1;
  }
  return run_block({"gated_bottleneck", x, shortcut_weight, shortcut_bias, shortcut_packed, keep,
                    keep_scale, stride, pool, x_pooled},
                   std::move(branch));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddi, CPU, m) {
  m.impl("gated_bottleneck", TORCH_BOX(&gated_bottleneck_cpu));
}

}  // namespace ddi
