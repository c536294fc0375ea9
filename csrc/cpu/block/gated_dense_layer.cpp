// A chain of two convolutions; samples that open no new channel never enter it.
#include "gated_dense_layer.h"

#include <algorithm>

#include "base/arena.h"
#include "pixels/pool_sample.h"

namespace ddi {
namespace {

template <class T>
ConvChain<T> make_chain(const GatedDenseLayer<T>& layer) {
  ConvChain<T> chain;
  chain.count = 2;
  chain.link[0].conv = layer.conv1;
  chain.link[0].conv.relu = true;
  chain.link[1].conv = layer.conv2;
  join(chain.link[0], chain.link[1]);
  return chain;
}

// any[n]: whether a sample opens any new channel. Only where the layer has bits for them.
template <class T>
void find_samples_with_outputs(const GatedConv2d<T>& conv, uint8_t* any) {
  const int64_t groups = ceil_div(conv.shape.co, conv.out_group_size);
  const uint8_t* open = conv.out_open;
  for (int64_t n = 0; n < conv.shape.n; ++n, open += groups) {
    any[n] = std::any_of(open, open + groups, [](uint8_t bit) { return bit != 0; });
  }
}

// The means of one sample's new channels. Of a tensor whose closed channels are left alone, those
// are summed as well, whatever they hold, and dropped.
template <class T>
void pool(const GatedDenseLayer<T>& layer, int64_t sample, bool kept) {
  using Acc = typename Types<T>::Acc;
  const GatedConv2d<T>& conv = layer.conv2;
  const int64_t channels = conv.shape.co, pixels = conv.shape.out_h() * conv.shape.out_w();
  const int64_t groups = ceil_div(channels, conv.out_group_size);
  Acc* mean = layer.pooled + sample * channels;
  if (kept) {
    const T* y = conv.y + sample * conv.out_sample_stride();
    pool_sample(y, conv.channels_last, conv.out_stride(), channels, pixels, mean);
  }
  for (int64_t c = 0; c < channels; ++c) {
    const bool open =
        conv.out_open == nullptr || conv.out_open[sample * groups + c / conv.out_group_size] != 0;
    if (!open) mean[c] = Acc(0);
  }
}

}  // namespace

template <class T>
int64_t gated_dense_layer_workspace_bytes(const GatedDenseLayer<T>& layer, int64_t threads) {
  const int64_t chain = conv_chain_workspace_bytes(make_chain(layer), threads);
  Arena arena(nullptr);
  arena.take<uint8_t>(layer.conv2.shape.n);
  return chain < 0 ? chain : arena.used() + chain;
}

template <class T>
void gated_dense_layer(const GatedDenseLayer<T>& layer, int64_t threads,
                       const ParallelFor& parallel_for, void* workspace) {
  Arena arena(workspace);
  uint8_t* keep = arena.take<uint8_t>(layer.conv2.shape.n);
  ConvChain<T> chain = make_chain(layer);
  if (layer.conv2.out_open != nullptr) {
    find_samples_with_outputs(layer.conv2, keep);
    chain.keep = keep;
  }
  const auto finish = [&](int64_t sample, bool kept) {
    const GatedConv2d<T>& conv = layer.conv2;
    const int64_t numel = conv.out_sample_stride();
    if (!kept && !conv.leave_closed) std::fill_n(conv.y + sample * numel, numel, T{});
    if (layer.pooled != nullptr) pool(layer, sample, kept);
  };
  chain.finish = finish;
  conv_chain(chain, threads, parallel_for, static_cast<char*>(workspace) + arena.used());
}

#define DDI_INSTANTIATE(T)                                                                   \
  template int64_t gated_dense_layer_workspace_bytes<T>(const GatedDenseLayer<T>&, int64_t); \
  template void gated_dense_layer<T>(const GatedDenseLayer<T>&, int64_t, const ParallelFor&, void*);

DDI_INSTANTIATE(float)
DDI_INSTANTIATE(double)
DDI_INSTANTIATE(bf16)

}  // namespace ddi
