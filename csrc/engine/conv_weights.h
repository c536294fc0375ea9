// A convolution of a plan: its geometry, checked, and its weights, packed for the drivers once,
// when the plan is loaded.
#pragma once

#include <memory>
#include <new>
#include <vector>

#include "gated_conv2d.h"
#include "plan_file.h"

namespace ddi::engine {

// Storage that the drivers' vectors may be loaded from.
template <class T>
class Aligned {
 public:
  Aligned() = default;
  explicit Aligned(int64_t count)
      : data_(static_cast<T*>(
            ::operator new(static_cast<size_t>(count) * sizeof(T), std::align_val_t{64}))) {}

  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete(data, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
};

// What a plan must not say of a convolution's output and its residual, a value or kNone.
void check_result(Words& words, int64_t out, int64_t residual, const Conv2dShape& shape);

template <class T>
struct ConvWeights {
  // Of an input with ci channels of h x w; n is left to the call.
  ConvWeights(Words& words, int64_t ci, int64_t h, int64_t w);

  // With weights and bias; masks, x and y are left to the caller.
  GatedConv2d<T> args(int64_t n) const;
  // Multiply-adds of one sample with so many channels open.
  int64_t macs(int64_t open_in, int64_t open_out) const;
  int64_t dense_macs() const { return macs(shape.ci, shape.co); }

  Conv2dShape shape;
  Aligned<typename Types<T>::Cell> packed;
  std::vector<float> bias;
  // Of int8: what one step of x is worth, and one of each output channel's sums.
  float x_scale = 1;
  std::vector<float> factor;
};

}  // namespace ddi::engine
