// Runs one gated convolution, or several in a row on every sample: a fused block, whose interiors
// stay compact, in the workspace and, for small images, in cache. A sample goes through the whole
// chain before its task takes the next.
#pragma once

#include "conv_link.h"

namespace ddi {

constexpr int kMaxChain = 4;

template <class T>
struct ConvChain {
  // All of the same batch; only a chain of one may have convolution groups.
  ConvLink<T> link[kMaxChain];
  int count = 0;
  const uint8_t* keep = nullptr;  // [n], the samples to run; nullptr: all
  // Called once for every sample, with no two calls for a sample at a time: after the chain, or
  // instead of it where keep is 0.
  FunctionRef<void(int64_t sample, bool kept)> finish;
};

// As for gated_conv2d; reads only shapes and how links are joined.
template <class T>
int64_t conv_chain_workspace_bytes(const ConvChain<T>& chain, int64_t threads);

// The result does not depend on `threads`.
template <class T>
void conv_chain(const ConvChain<T>& chain, int64_t threads, const ParallelFor& parallel_for,
                void* workspace);

}  // namespace ddi
