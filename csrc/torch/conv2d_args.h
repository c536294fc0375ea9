// Checks and conversions of arguments that gated convolutions have in common.
#pragma once

#include <array>
#include <vector>

#include "../cpu/gated_conv2d.h"
#include "common.h"

namespace ddi {

// The sizes of a 4-dimensional image.
void check_image_sizes(const char* op, const char* name, const Tensor& x);

// All integers of a gated convolution, in the order of the schema's list; as Geometry in Python.
struct Conv2dGeometry {
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;
  int64_t in_group_size, out_group_size, relu;
};

// The list with every entry in its range.
Conv2dGeometry check_geometry(const char* op, const std::vector<int64_t>& list);

// Sizes of a convolution, checked.
Conv2dShape check_conv2d(const char* op, const Tensor& x, const Tensor& weight,
                         const Conv2dGeometry& g);

// A tensor of this shape and dtype, or none. Returned contiguous.
OptionalTensor check_dense(const char* op, const char* name, const OptionalTensor& t,
                           ScalarType dtype, Sizes shape);

// The shape of a mask or a scale: one entry per sample and group of channels.
std::array<int64_t, 2> gates_shape(int64_t samples, int64_t channels, int64_t group_size);

// The same values in the dtype that sums are kept in.
OptionalTensor widened(const OptionalTensor& t);

template <class T>
const T* data(const OptionalTensor& t) {
  return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

}  // namespace ddi
