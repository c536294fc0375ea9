// The gated layer of DenseNet-BC as one call: relu of an affine map of the open channels, 1x1
// convolution, 3x3 convolution to the open new channels, and their means. The middle stays compact.
#pragma once

#include "conv/conv_chain.h"

namespace ddi {

// What conv1 reads (x, its strides, in_open, pre_scale, pre_shift), what conv2 writes (y, its
// strides, out_open, leave_closed), and the weights and shapes of both.
template <class T>
struct GatedDenseLayer {
  GatedConv2d<T> conv1, conv2;
  typename Types<T>::Acc* pooled;  // [n][co of conv2], 0 where closed, or nullptr
};

template <class T>
int64_t gated_dense_layer_workspace_bytes(const GatedDenseLayer<T>& layer, int64_t threads);

// The result does not depend on `threads`.
template <class T>
void gated_dense_layer(const GatedDenseLayer<T>& layer, int64_t threads,
                       const ParallelFor& parallel_for, void* workspace);

}  // namespace ddi
