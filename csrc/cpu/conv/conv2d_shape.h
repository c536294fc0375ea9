// The sizes of a convolution.
#pragma once

#include <cstdint>

namespace ddi {

// Outputs along one side of an image, where each window lies inside the padding.
constexpr int64_t conv_output_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad,
                                   int64_t dilation) {
  return (size + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
}

struct Conv2dShape {
  int64_t n, ci, h, w, co, kh, kw;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t groups = 1;
  bool winograd = false;  // transformed weights follow the packed ones, see prepack_conv2d.h

  int64_t out_h() const { return conv_output_size(h, kh, stride_h, pad_h, dilation_h); }
  int64_t out_w() const { return conv_output_size(w, kw, stride_w, pad_w, dilation_w); }
  // Rows and columns from a window's first tap to its last.
  int64_t window_h() const { return dilation_h * (kh - 1) + 1; }
  int64_t window_w() const { return dilation_w * (kw - 1) + 1; }
  bool has_outputs() const { return h + 2 * pad_h >= window_h() && w + 2 * pad_w >= window_w(); }
  int64_t group_ci() const { return ci / groups; }
  int64_t group_co() const { return co / groups; }
};

}  // namespace ddi
