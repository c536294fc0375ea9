// A chain of two convolutions; samples that open no new channel never enter it.
#include "gated_dense_layer.h"

#include <algorithm>
#include <vector>

#include "arena.h"
#include "pool_sample.h"

namespace ddi {
namespace {

template <class T>
ConvChain<T> make_chain(const GatedDenseLayer<T>& layer) {
  ConvChain<T> chain;
  chain.count = 2;
  chain.conv[0] = layer.conv1;
  chain.conv[0].relu = true;
  chain.conv[0].to_interior = true;
  chain.conv[0].halo_h = layer.conv2.shape.pad_h;
  chain.conv[0].halo_w = layer.conv2.shape.pad_w;
  chain.conv[1] = layer.conv2;
  chain.conv[1].from_interior = true;
  return chain;
}

// Whether a sample opens any new channel, for all samples.
template <class T>
std::vector<uint8_t> samples_with_outputs(const GatedConv2d<T>& conv) {
  const int64_t n = conv.shape.n, groups = ceil_div(conv.shape.co, conv.out_group_size);
  std::vector<uint8_t> any(static_cast<size_t>(n), conv.out_open == nullptr);
  for (int64_t i = 0; conv.out_open != nullptr && i < n * groups; ++i) {
    if (conv.out_open[i] != 0) any[static_cast<size_t>(i / groups)] = 1;
  }
  return any;
}

// The means of one sample's new channels. Of a tensor whose closed channels are left alone, those
// are summed as well, whatever they hold, and dropped.
template <class T>
void pool(const GatedDenseLayer<T>& layer, int64_t sample, bool kept) {
  const GatedConv2d<T>& conv = layer.conv2;
  const int64_t channels = conv.shape.co, pixels = conv.shape.out_h() * conv.shape.out_w();
  const int64_t groups = ceil_div(channels, conv.out_group_size);
  T* mean = layer.pooled + sample * channels;
  if (kept) {
    const T* y = conv.y + sample * conv.out_sample_stride();
    pool_sample(y, conv.channels_last, conv.out_stride(), channels, pixels, mean);
  }
  for (int64_t c = 0; c < channels; ++c) {
    const bool open =
        conv.out_open == nullptr || conv.out_open[sample * groups + c / conv.out_group_size] != 0;
    if (!open) mean[c] = T(0);
  }
}

}  // namespace

template <class T>
int64_t gated_dense_layer_workspace_bytes(const GatedDenseLayer<T>& layer, int64_t threads) {
  return conv_chain_workspace_bytes(make_chain(layer), threads);
}

template <class T>
void gated_dense_layer(const GatedDenseLayer<T>& layer, int64_t threads,
                       const ParallelFor& parallel_for, void* workspace) {
  const std::vector<uint8_t> keep = samples_with_outputs(layer.conv2);
  ConvChain<T> chain = make_chain(layer);
  chain.keep = keep.data();
  chain.finish = [&](int64_t sample, bool kept) {
    const GatedConv2d<T>& conv = layer.conv2;
    const int64_t numel = conv.out_sample_stride();
    if (!kept && !conv.leave_closed) std::fill_n(conv.y + sample * numel, numel, T(0));
    if (layer.pooled != nullptr) pool(layer, sample, kept);
  };
  conv_chain(chain, threads, parallel_for, workspace);
}

template int64_t gated_dense_layer_workspace_bytes<float>(const GatedDenseLayer<float>&, int64_t);
template int64_t gated_dense_layer_workspace_bytes<double>(const GatedDenseLayer<double>&, int64_t);
template void gated_dense_layer<float>(const GatedDenseLayer<float>&, int64_t, const ParallelFor&,
                                       void*);
template void gated_dense_layer<double>(const GatedDenseLayer<double>&, int64_t, const ParallelFor&,
                                        void*);

}  // namespace ddi
