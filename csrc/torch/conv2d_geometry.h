// The integers of a gated convolution, checked; the same for every device.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "../cpu/conv/conv2d_shape.h"
#include "tensors.h"

namespace ddi {

constexpr int64_t kMaxDimension = std::numeric_limits<int32_t>::max() - 1;

// The sizes of a 4-dimensional image.
inline void check_image_sizes(const char* op, const char* name, const Tensor& x) {
  const Sizes sizes = x.sizes();
  for (size_t d = 0; d < 4; ++d) {
    STD_TORCH_CHECK(sizes[d] >= (d == 0 ? 0 : 1) && sizes[d] <= kMaxDimension, op, ": ", name,
                    " has shape ", shape_of(x),
                    "; every dimension but the batch must be at least 1, all less than 2^31");
  }
}

// All integers of a gated convolution, in the order of the schema's list; as Geometry in Python.
struct Conv2dGeometry {
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;
  int64_t in_group_size, out_group_size, relu;
};

inline void check_pair(const char* op, const char* name, int64_t h, int64_t w, int64_t least) {
  STD_TORCH_CHECK(std::min(h, w) >= least && std::max(h, w) <= kMaxDimension + 1, op, ": ", name,
                  " is [", h, ", ", w, "]; expected entries of at least ", least,
                  " and less than 2^31");
}

// The list with every entry in its range.
inline Conv2dGeometry check_geometry(const char* op, const std::vector<int64_t>& list) {
  STD_TORCH_CHECK(list.size() == 10, op, ": geometry has ", list.size(), " entries; expected 10");
  const Conv2dGeometry g = {list[0], list[1], list[2], list[3], list[4],
                            list[5], list[6], list[7], list[8], list[9]};
  check_pair(op, "stride", g.stride_h, g.stride_w, 1);
  check_pair(op, "padding", g.pad_h, g.pad_w, 0);
  check_pair(op, "dilation", g.dilation_h, g.dilation_w, 1);
  STD_TORCH_CHECK(g.groups >= 1, op, ": groups is ", g.groups, "; expected at least 1");
  STD_TORCH_CHECK(g.in_group_size >= 1 && g.out_group_size >= 1, op,
                  ": in_group_size and out_group_size are ", g.in_group_size, " and ",
                  g.out_group_size, "; expected at least 1");
  return g;
}

// Sizes of a convolution, checked.
inline Conv2dShape check_conv2d(const char* op, const Tensor& x, const Tensor& weight,
                                const Conv2dGeometry& g) {
  check_dim(op, "x", x, 4, "[N, Ci, H, W]");
  check_dim(op, "weight", weight, 4, "[Co, Ci / groups, kh, kw]");
  for (int64_t d = 0; d < 4; ++d) {
    STD_TORCH_CHECK(weight.size(d) >= 1 && weight.size(d) <= kMaxDimension, op,
                    ": weight has shape ", shape_of(weight),
                    "; every dimension must be at least 1 and less than 2^31");
  }
  check_image_sizes(op, "x", x);
  STD_TORCH_CHECK(g.groups <= weight.size(0), op, ": groups is ", g.groups,
                  "; expected at least 1 and a divisor of weight's ", weight.size(0), " channels");
  STD_TORCH_CHECK(x.size(1) == weight.size(1) * g.groups && weight.size(0) % g.groups == 0, op,
                  ": x has ", x.size(1), " channels (shape ", shape_of(x),
                  "), but weight has shape ", shape_of(weight), " and groups is ", g.groups,
                  "; expected Ci to agree and Co to be a multiple of groups");
  const Conv2dShape s = {x.size(0),      x.size(1),      x.size(2),    x.size(3),  weight.size(0),
                         weight.size(2), weight.size(3), g.stride_h,   g.stride_w, g.pad_h,
                         g.pad_w,        g.dilation_h,   g.dilation_w, g.groups};
  STD_TORCH_CHECK(s.has_outputs(), op, ": the kernel, ", shape_of({s.kh, s.kw}), " with dilation ",
                  shape_of({s.dilation_h, s.dilation_w}), ", is larger than the padded input, ",
                  shape_of({s.h + 2 * s.pad_h, s.w + 2 * s.pad_w}));
  // In floating point, where sizes near the limits of int64_t cannot wrap around.
  const double outputs = static_cast<double>(s.n) * s.co * s.out_h() * s.out_w();
  STD_TORCH_CHECK(outputs < 1e15, op, ": the output would have shape ",
                  shape_of({s.n, s.co, s.out_h(), s.out_w()}),
                  ", more than any machine holds; check padding, which is ",
                  shape_of({s.pad_h, s.pad_w}));
  return s;
}

// The shape of a mask or a scale: one entry per sample and group of channels.
inline std::array<int64_t, 2> gates_shape(int64_t samples, int64_t channels, int64_t group_size) {
  return {samples, (channels - 1) / group_size + 1};
}

}  // namespace ddi
