// A residual block is a chain: the shortcut's convolution into y, then the branch, whose last
// convolution adds what y holds (or x) as its residual. Skipped samples are copied.
#include "gated_block.h"

#include <algorithm>

#include "block_result.h"

namespace ddi {
namespace {

template <class T>
ConvChain<T> make_chain(const GatedBlock<T>& b) {
  ConvChain<T> chain;
  const GatedConv2d<T>& last = b.branch[b.depth - 1];
  if (b.has_shortcut) {
    GatedConv2d<T>& conv = chain.conv[chain.count++] = b.shortcut;
    conv.x = b.x;
    std::copy(b.x_stride, b.x_stride + 4, conv.x_stride);
    conv.channels_last = b.channels_last;
    conv.y = b.y;
  }
  for (int i = 0; i < b.depth; ++i) {
    GatedConv2d<T>& conv = chain.conv[chain.count++] = b.branch[i];
    conv.relu = true;
    conv.from_interior = i > 0;
    conv.to_interior = i + 1 < b.depth;
    if (i == 0) {
      conv.x = b.x;
      std::copy(b.x_stride, b.x_stride + 4, conv.x_stride);
    }
    if (conv.to_interior) {
      conv.halo_h = b.branch[i + 1].shape.pad_h;
      conv.halo_w = b.branch[i + 1].shape.pad_w;
      continue;
    }
    conv.channels_last = b.channels_last;
    conv.y = b.y;
    conv.residual = b.has_shortcut ? b.y : b.x;
    if (b.keep_scale == nullptr) continue;
    conv.scale = b.keep_scale;
    conv.out_group_size = last.shape.co;
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
