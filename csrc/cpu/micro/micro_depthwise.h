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
  int run;            // 1, or 3: every three taps lie in_stride apart, so that outputs share inputs
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

template <class T>
using DepthwiseTileFn = void (*)(const DepthwiseTile<T>& tile, int64_t outputs);

extern const DepthwiseTileFn<float> kScalarDepthwiseF32;
extern const DepthwiseTileFn<double> kScalarDepthwiseF64;
#if defined(__x86_64__)
extern const DepthwiseTileFn<float> kAvx2DepthwiseF32;
extern const DepthwiseTileFn<float> kAvx512DepthwiseF32;
#elif defined(__aarch64__) || defined(__arm__)
extern const DepthwiseTileFn<float> kNeonDepthwiseF32;
#endif

// The function for current_isa(); float64 is always scalar.
template <class T>
DepthwiseTileFn<T> depthwise_tile();

}  // namespace ddi
