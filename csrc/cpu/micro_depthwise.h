// The micro-kernel of depthwise convolutions, where every channel is convolved with a kernel of its
// own: lanes are neighbouring channels of a pixel or, in planes, neighbouring pixels of a channel.
// Nothing is summed over lanes, so junk in a closed one stays there until it is masked at the end.
#pragma once

#include <cstdint>

namespace ddi {

struct DepthwiseTap {
  int64_t in;      // from the first lane of an output's window
  int64_t weight;  // from the tile's first weight
};

// A run of outputs of up to kLanes columns each.
template <class T>
struct DepthwiseTile {
  const T* in;
  int64_t in_stride;  // from one output's window to the next
  const DepthwiseTap* tap;
  int64_t taps;
  const T* weight;    // whole lanes, wherever a tap points
  const T* bias;      // [kLanes]
  const T* scale;     // [kLanes] or nullptr
  const T* residual;  // laid out as `out`, or nullptr
  T* out;
  int64_t out_stride;
  int lanes;          // columns that exist, in x and y
  uint16_t in_open;   // lanes whose sum counts, else it is 0
  uint16_t out_open;  // lanes whose sum, bias and scale count, else they give 0
  bool relu;          // keeps NaN, like torch
};

void depthwise_tile_avx2(const DepthwiseTile<float>& tile, int64_t outputs);
void depthwise_tile_avx512(const DepthwiseTile<float>& tile, int64_t outputs);

}  // namespace ddi
