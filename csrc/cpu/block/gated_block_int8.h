// The same residual blocks as gated_block with convolutions in int8, between images of float32: x
// is quantized for the branch and the shortcut, each interior for the convolution that reads it;
// sums become floats again for bias, scale, residual and activation. Interiors are whole images, of
// which closed channels are never read.
#pragma once

#include "conv/conv_chain.h"

namespace ddi {

// As GatedBlock; x and y are dense, [n][h][w][c].
struct GatedBlockInt8 {
  MaskedConv<int8_t> branch[3];
  float x_scale[3];             // what a step of each one's input is worth
  int depth;                    // convolutions in `branch`
  MaskedConv<int8_t> shortcut;  // of the same input as branch[0], 1x1; only if has_shortcut
  bool has_shortcut;
  const float* x;
  const uint8_t* keep;    // [n] or nullptr; only without a shortcut convolution
  float* y;               // may be x, without a shortcut convolution
  float* pooled;          // [n][co] means of y over the pixels, or nullptr
  const float* x_pooled;  // [n][ci] or nullptr: the means of skipped samples
};

int64_t gated_block_int8_workspace_bytes(const GatedBlockInt8& block, int64_t threads);

// The result does not depend on `threads`.
void gated_block_int8(const GatedBlockInt8& block, int64_t threads, const ParallelFor& parallel_for,
                      void* workspace);

}  // namespace ddi
