// Checks and conversions of arguments that gated convolutions have in common.
#pragma once

#include <vector>

#include "../cpu/gated_conv2d.h"
#include "common.h"

namespace ddi {

// The sizes of a 4-dimensional image.
void check_image_sizes(const char* op, const char* name, const Tensor& x);

// Sizes of a convolution, checked.
Conv2dShape check_conv2d(const char* op, const Tensor& x, const Tensor& weight,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation, int64_t groups);

// A tensor of this shape and dtype, or none. Returned contiguous.
OptionalTensor check_dense(const char* op, const char* name, const OptionalTensor& t,
                           ScalarType dtype, const std::vector<int64_t>& shape);

// The shape of a mask or a scale: one entry per sample and group of channels.
std::vector<int64_t> gates_shape(int64_t samples, int64_t channels, int64_t group_size);

// The same values in the dtype that sums are kept in.
OptionalTensor widened(const OptionalTensor& t);

template <class T>
const T* data(const OptionalTensor& t) {
  return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

}  // namespace ddi
