// A residual block is a chain: the shortcut's convolution into y, then the branch, whose last
// convolution adds what y holds (or x) as its residual. Skipped samples are copied.
#include "gated_block.h"

#include <algorithm>

#include "block_result.h"

namespace ddi {
namespace {

// A link of the chain that reads x.
template <class T>
void read_input(const GatedBlock<T>& b, GatedConv2d<T>& conv) {
  conv.x = b.x;
  std::copy(b.x_stride, b.x_stride + 4, conv.x_stride);
}

template <class T>
ConvChain<T> make_chain(const GatedBlock<T>& b) {
  ConvChain<T> chain;
  if (b.has_shortcut) {
    GatedConv2d<T>& conv = chain.link[chain.count++].conv = {b.shortcut};
    read_input(b, conv);
    conv.channels_last = b.channels_last;
    conv.y = b.y;
  }
  ConvLink<T>* branch = chain.link + chain.count;
  chain.count += b.depth;
  for (int i = 0; i < b.depth; ++i) {
    branch[i].conv = {b.branch[i]};
    branch[i].conv.relu = true;
    if (i > 0) join(branch[i - 1], branch[i]);
  }
  read_input(b, branch[0].conv);
  GatedConv2d<T>& last = branch[b.depth - 1].conv;
  last.channels_last = b.channels_last;
  last.y = b.y;
  last.residual = b.has_shortcut ? b.y : b.x;
  if (b.keep_scale != nullptr) {
    last.scale = b.keep_scale;
    last.out_group_size = last.shape.co;
  }
  chain.keep = b.keep;
  return chain;
}

}  // namespace

template <class T>
int64_t gated_block_workspace_bytes(const GatedBlock<T>& block, int64_t threads) {
  return conv_chain_workspace_bytes(make_chain(block), threads);
}

template <class T>
void gated_block(const GatedBlock<T>& block, int64_t threads, const ParallelFor& parallel_for,
                 void* workspace) {
  ConvChain<T> chain = make_chain(block);
  const Conv2dShape& s = block.branch[block.depth - 1].shape;
  const BlockResult<T> result = {
      s.out_h() * s.out_w(), s.co,        block.channels_last, block.x, block.y,
      block.x_pooled,        block.pooled};
  const auto finish = [&](int64_t sample, bool kept) { result.finish(sample, kept); };
  chain.finish = finish;
  conv_chain(chain, threads, parallel_for, workspace);
}

#define DDI_INSTANTIATE(T)                                                              \
  template int64_t gated_block_workspace_bytes<T>(const GatedBlock<T>& block, int64_t); \
  template void gated_block<T>(const GatedBlock<T>&, int64_t, const ParallelFor&, void*);

DDI_INSTANTIATE(float)
DDI_INSTANTIATE(double)
DDI_INSTANTIATE(half)
DDI_INSTANTIATE(bf16)

}  // namespace ddi
