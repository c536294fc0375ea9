// What the glue of the fused blocks shares: checks of one convolution and of the parts around the
// branch, allocation, the call of the driver.
#pragma once

#include "../cpu/gated_block.h"
#include "../cpu/prepack_conv2d.h"
#include "common.h"
#include "prepack_conv2d.h"

namespace ddi {

// One convolution of a block, its arguments as the schema has them: those of the convolution are
// called prefix + "weight" + number and so on, those of its gate "mask" + gate_number and so on.
struct BlockConv {
  std::string prefix, number, gate_number;
  Tensor weight;
  OptionalTensor bias, packed, mask, scale;
  int64_t group_size = 1;
  Conv2dShape shape = {};
};

// The parts of a residual block around its branch.
struct BlockParts {
  const char* op;
  Tensor x;
  OptionalTensor shortcut_weight, shortcut_bias, shortcut_packed, keep, keep_scale;
  int64_t stride;
  bool pool;
  OptionalTensor x_pooled;
};

// Runs a residual block; `branch` are its convolutions in order, kernel and stride in their shapes.
std::tuple<Tensor, Tensor> run_block(BlockParts parts, std::vector<BlockConv> branch);

}  // namespace ddi
