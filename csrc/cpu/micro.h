// The micro-kernels, one table of functions per instruction set: the only code that differs
// between machines. Weights come in panels of kLanes output channels, [taps][input channels]
// [kLanes]; activations inside a driver are compact, [pixel][open channel], so that the inner loop
// of a convolution is one contiguous walk whatever the masks are.
#pragma once

#include <cstdint>

namespace ddi {

constexpr int kLanes = 16;

// The open channels of one sample.
struct ChannelSet {
  int64_t channels;      // all of them
  int64_t open;          // how many are open
  const int32_t* index;  // [open], ascending
  const uint16_t* bits;  // [ceil(channels / 16)], bit i of word k is channel 16 k + i
};

// One register tile: a run of pixels of one output row times a run of weight panels. The reduction
// walks `segments` stretches of `segment_length` contiguous inputs, shared by input and weights.
template <class T>
struct ConvTile {
  const T* in;            // window of the first pixel
  int64_t pixel_stride;   // from one output pixel's window to the next
  const int64_t* offset;  // [segments], start of each stretch relative to the window
  int64_t segments;
  int64_t segment_length;
  const T* weight;  // panel v at weight + v * panel_stride
  int64_t panel_stride;
  const T* bias;      // [panels * kLanes]
  const T* scale;     // [panels * kLanes] or nullptr
  const T* residual;  // laid out as `out`, or nullptr
  T* out;             // pixel p, panel v at out + p * out_stride + v * kLanes
  int64_t out_stride;
  int last_lanes;  // columns that exist in the last panel
  bool relu;       // keeps NaN, like torch
};

// Columns that a compressed panel takes from one packed panel.
template <class T>
struct PanelMove {
  const T* src;   // the packed panel
  uint32_t mask;  // its columns to take
  int lane;       // where the first of them goes
};

template <class T>
struct Micro {
  // Most pixels of a tile that is 1, 2 or 4 panels wide, by panels; 0: no such tile.
  int tile_pixels[5];

  void (*conv_tile)(const ConvTile<T>& tile, int pixels, int panels);

  // One compressed panel, dst[taps][in.open][kLanes], from packed panels of [taps][in.channels]
  // [kLanes]. May write up to kLanes elements past the end.
  void (*compress_panel)(const PanelMove<T>* moves, int n_moves, int64_t taps, const ChannelSet& in,
                         T* dst);

  // dst[pixels][set.open] from channel-contiguous pixels.
  void (*compress_pixels)(const T* src, int64_t pixel_stride, int64_t pixels, const ChannelSet& set,
                          T* dst);

  // dst[pixels][set.open] from pixel-contiguous channels.
  void (*gather_planes)(const T* src, int64_t channel_stride, int64_t pixels, const ChannelSet& set,
                        T* dst);

  // dst[pixels][set.channels] = act(src at open channels, else 0, + residual); src rows are
  // src_stride apart and hold at least set.open elements, rounded up to kLanes.
  void (*expand_pixels)(const T* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                        const T* residual, bool relu, T* dst);

  // The same into pixel-contiguous channels, channel_stride apart; writes open channels only.
  void (*scatter_planes)(const T* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                         int64_t channel_stride, const T* residual, bool relu, T* dst);
};

extern const Micro<float> kScalarF32;
extern const Micro<double> kScalarF64;
#if defined(__x86_64__)
extern const Micro<float> kAvx2F32;
extern const Micro<float> kAvx512F32;
#endif

// The table for current_isa(); float64 is always scalar.
template <class T>
const Micro<T>& micro();

}  // namespace ddi
