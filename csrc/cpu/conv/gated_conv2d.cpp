// A chain of one convolution; depthwise ones have a driver of their own.
#include "gated_conv2d.h"

#include "conv_chain.h"
#include "depthwise_conv2d.h"

namespace ddi {

template <class T>
int64_t gated_conv2d_workspace_bytes(const Conv2dShape& shape, int64_t threads) {
  if constexpr (kHasDepthwise<T>) {
    if (is_depthwise(shape.ci, shape.co, shape.groups)) {
      return depthwise_conv2d_workspace_bytes<T>(shape, threads);
    }
  }
  ConvChain<T> chain;
  chain.link[0].conv.shape = shape;
  chain.count = 1;
  return conv_chain_workspace_bytes(chain, threads);
}

template <class T>
void gated_conv2d(const GatedConv2d<T>& args, int64_t threads, const ParallelFor& parallel_for,
                  void* workspace) {
  if constexpr (kHasDepthwise<T>) {
    if (is_depthwise(args.shape.ci, args.shape.co, args.shape.groups)) {
      return depthwise_conv2d(args, threads, parallel_for, workspace);
    }
  }
  ConvChain<T> chain;
  chain.link[0].conv = args;
  chain.count = 1;
  conv_chain(chain, threads, parallel_for, workspace);
}

#define DDI_INSTANTIATE(T)                                                       \
  template int64_t gated_conv2d_workspace_bytes<T>(const Conv2dShape&, int64_t); \
  template void gated_conv2d<T>(const GatedConv2d<T>&, int64_t, const ParallelFor&, void*);

DDI_INSTANTIATE(float)
DDI_INSTANTIATE(double)
DDI_INSTANTIATE(half)
DDI_INSTANTIATE(bf16)
DDI_INSTANTIATE(int8_t)

}  // namespace ddi
