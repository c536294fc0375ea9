// Residual blocks as one call: y = keep ? relu(keep_scale * F(x; masks) + shortcut(x)) : x, with F
// a chain of gated convolutions whose interiors stay compact, and the means of y for the next gate.
#pragma once

#include "conv/conv_chain.h"

namespace ddi {

// What all residual blocks have; the convolutions of F are in `branch`.
template <class T>
struct GatedBlock {
  using Acc = typename Types<T>::Acc;

  MaskedConv<T> branch[3];
  int depth;               // convolutions in `branch`
  MaskedConv<T> shortcut;  // of x, 1x1; only if has_shortcut
  bool has_shortcut;
  const T* x;  // laid out as y unless has_shortcut
  int64_t x_stride[4];
  const uint8_t* keep;    // [n] or nullptr; only without a shortcut convolution
  const Acc* keep_scale;  // [n] or nullptr
  bool channels_last;     // of y
  T* y;  // may be x, without a shortcut convolution: skipped samples are then not touched at all
  Acc* pooled;          // [n][co] means of y over the pixels, or nullptr
  const Acc* x_pooled;  // [n][ci] or nullptr: the means of skipped samples
};

template <class T>
int64_t gated_block_workspace_bytes(const GatedBlock<T>& block, int64_t threads);

// The result does not depend on `threads`.
template <class T>
void gated_block(const GatedBlock<T>& block, int64_t threads, const ParallelFor& parallel_for,
                 void* workspace);

}  // namespace ddi
