// The sizes of a convolution.
#pragma once

#include <cstdint>

namespace ddi {

struct Conv2dShape {
  int64_t n, ci, h, w, co, kh, kw;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t groups = 1;
  bool winograd = false;  // transformed weights follow the packed ones, see prepack_conv2d.h

  int64_t out_h() const { return (h + 2 * pad_h - dilation_h * (kh - 1) - 1) / stride_h + 1; }
  int64_t out_w() const { return (w + 2 * pad_w - dilation_w * (kw - 1) - 1) / stride_w + 1; }
  int64_t group_ci() const { return ci / groups; }
  int64_t group_co() const { return co / groups; }
};

}  // namespace ddi
