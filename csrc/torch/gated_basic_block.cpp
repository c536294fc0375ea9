// ddi::gated_basic_block for the CPU.
#include "block_parts.h"

namespace ddi {
namespace {

std::tuple<Tensor, Tensor> gated_basic_block_cpu(
    const Tensor& x, const Tensor& weight1, const OptionalTensor& bias1,
    const OptionalTensor& packed1, const Tensor& weight2, const OptionalTensor& bias2,
    const OptionalTensor& packed2, const OptionalTensor& shortcut_weight,
    const OptionalTensor& shortcut_bias, const OptionalTensor& shortcut_packed,
    const OptionalTensor& keep, const OptionalTensor& keep_scale, const OptionalTensor& mask,
    const OptionalTensor& mask_scale, int64_t group_size, int64_t stride, bool pool,
    const OptionalTensor& x_pooled) {
  std::vector<BlockConv> branch = {
      {"", "1", "", weight1, bias1, packed1, mask, mask_scale, group_size},
      {"", "2", "", weight2, bias2, packed2, {}, {}},
  };
  for (BlockConv& conv : branch) conv.shape.kh = 3;
  branch[0].shape.stride_h = stride;
  branch[1].shape.stride_h = 1;
  return run_block({"gated_basic_block", x, shortcut_weight, shortcut_bias, shortcut_packed, keep,
                    keep_scale, stride, pool, x_pooled},
                   std::move(branch));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddi, CPU, m) {
  m.impl("gated_basic_block", TORCH_BOX(&gated_basic_block_cpu));
}

}  // namespace ddi
