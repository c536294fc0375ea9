// Checks and conversions of arguments that gated convolutions have in common.
#pragma once

#include "../cpu/conv/gated_conv2d.h"
#include "common.h"
#include "conv2d_geometry.h"

namespace ddi {

// A tensor of this shape and dtype, or none. Returned contiguous.
OptionalTensor check_dense(const char* op, const char* name, const OptionalTensor& t,
                           ScalarType dtype, Sizes shape);

// The same values in the dtype that sums are kept in.
OptionalTensor widened(const OptionalTensor& t);

template <class T>
const T* data(const OptionalTensor& t) {
  return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

}  // namespace ddi
