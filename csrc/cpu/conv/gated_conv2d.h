// y = act(scale * mask * (conv(x * in_mask) + bias) + residual) for a batch in which every sample
// has its own open input and output channels. Work is proportional to open inputs x open outputs:
// both are made compact per sample, so the inner loop is that of a smaller dense convolution.
#pragma once

#include "base/parallel.h"
#include "conv2d_shape.h"
#include "micro/micro.h"

namespace ddi {

// Of an output: the sum of more could leave int32.
constexpr int64_t kMaxInt8Products = (int64_t{1} << 17) - 1;

// A convolution without its images: its weights, and what of them each sample uses.
template <class T>
struct MaskedConv {
  using Acc = typename Types<T>::Acc;

  Conv2dShape shape;
  const typename Types<T>::Cell* packed;  // from prepack_conv2d
  const Acc* bias;                        // [co] or nullptr
  const Acc* factor;                      // [co] of integer sums, else nullptr
  // Group bits, 0 or not 0, [n][ceil(channels / group_size)]; nullptr: all open. Closed inputs are
  // never used, and neither are the weights, bias and scale of closed outputs: they may hold NaN.
  const uint8_t* in_open;
  int64_t in_group_size;
  const uint8_t* out_open;
  int64_t out_group_size;
  const Acc* scale;  // by output group, or nullptr
};

template <class T>
struct GatedConv2d : MaskedConv<T> {
  using Acc = typename Types<T>::Acc;
  using Out = typename Types<T>::Out;

  const T* x = nullptr;
  int64_t x_stride[4] = {};       // of n, c, h, w, in elements; fastest if c or w is contiguous
  const Out* residual = nullptr;  // laid out as y, or nullptr
  bool relu = false;
  bool channels_last = false;  // of y, which is dense: [n][h][w][c] or [n][c][h][w]
  Out* y = nullptr;
  // For integer sums y may be nullptr; then y_int8 takes its place, with y / y_scale rounded to
  // nearest even and clamped.
  int8_t* y_int8 = nullptr;
  float y_scale = 1;
  // [ci] or nullptr: relu(pre_scale * x + pre_shift) takes the place of open inputs, not of
  // padding. Not of half and int8.
  const Acc *pre_scale = nullptr, *pre_shift = nullptr;
  // Where y is a part of a larger tensor, without a residual: from sample to sample, and from pixel
  // to pixel if channels_last, else from plane to plane. 0: y is dense.
  int64_t y_sample_stride = 0, y_stride = 0;
  // Closed outputs are not written, but for those of bfloat16 pixels in samples that have open
  // ones; only without residual and relu.
  bool leave_closed = false;

  int64_t out_stride() const {
    if (y_stride != 0) return y_stride;
    return channels_last ? this->shape.co : this->shape.out_h() * this->shape.out_w();
  }
  int64_t out_sample_stride() const {
    return y_sample_stride != 0 ? y_sample_stride
                                : this->shape.co * this->shape.out_h() * this->shape.out_w();
  }
};

// Room that a call needs with up to `threads` tasks at a time; aligned to 64 bytes by the caller.
// Negative if the sizes are out of any machine's reach.
template <class T>
int64_t gated_conv2d_workspace_bytes(const Conv2dShape& shape, int64_t threads);

// The result does not depend on `threads`.
template <class T>
void gated_conv2d(const GatedConv2d<T>& args, int64_t threads, const ParallelFor& parallel_for,
                  void* workspace);

}  // namespace ddi
