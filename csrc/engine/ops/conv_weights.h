// A convolution of a plan: its geometry, checked, and its weights, packed for the drivers once,
// when the plan is loaded.
#pragma once

#include <vector>

#include "conv/gated_conv2d.h"
#include "plan/plan_file.h"
#include "work.h"

namespace ddi::engine {

// What a plan must not say of a convolution's output and its residual, a value or kNone.
void check_result(Words& words, int64_t out, int64_t residual, const Conv2dShape& shape);

template <class T>
struct ConvWeights {
  // Of an input with ci channels of h x w; n is left to the call.
  ConvWeights(Words& words, int64_t ci, int64_t h, int64_t w);

  // With everything open; masks are left to the caller.
  MaskedConv<T> masked(int64_t n) const;
  // The same, for [n][h][w][c] images, which are left to the caller.
  GatedConv2d<T> args(int64_t n) const;
  // On one sample with so many channels open; of closed ones nothing is read or written.
  Work work(int64_t open_in, int64_t open_out) const;
  Work dense_work() const { return work(shape.ci, shape.co); }

  Conv2dShape shape;
  typename Types<T>::Cell* packed;  // in the graph's memory
  std::vector<float> bias;
  // Of int8: what one step of x is worth, and one of each output channel's sums.
  float x_scale = 1;
  std::vector<float> factor;
};

}  // namespace ddi::engine
