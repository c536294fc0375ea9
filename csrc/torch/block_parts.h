// What the glue of the fused blocks shares: checks of one convolution and of the parts around the
// branch, allocation, the call of the driver.
#pragma once

#include <vector>

#include "../cpu/block/gated_block.h"
#include "../cpu/conv/prepack_conv2d.h"
#include "common.h"
#include "conv2d_args.h"
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

// An image whose sizes and dtype the drivers take: float32, float64 and, with `halves`, less.
void check_image(const char* op, const char* name, const Tensor& x, bool halves = false);

// Fills in the shape of a convolution of an image [n, ci, h, w] and makes its tensors what drivers
// take.
void check_conv(const char* op, const Tensor& x, BlockConv& conv, int64_t ci, int64_t h, int64_t w,
                int64_t kernel, int64_t stride);

// As the drivers take it; `before` is the convolution whose open outputs are its inputs.
template <class T>
MaskedConv<T> conv_of(const BlockConv& c, const BlockConv* before) {
  MaskedConv<T> conv = {};
  conv.shape = c.shape;
  conv.packed = data<typename Types<T>::Cell>(c.packed);
  conv.bias = data<typename Types<T>::Acc>(c.bias);
  conv.in_open = before == nullptr ? nullptr : data<uint8_t>(before->mask);
  conv.in_group_size = before == nullptr ? 1 : before->group_size;
  conv.out_open = data<uint8_t>(c.mask);
  conv.out_group_size = c.group_size;
  conv.scale = data<typename Types<T>::Acc>(c.scale);
  return conv;
}

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
