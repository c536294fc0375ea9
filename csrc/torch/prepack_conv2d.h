// The operator as a function, for convolutions called without a packed weight.
#pragma once

#include "common.h"

namespace ddi {

Tensor prepack_conv2d_cpu(const Tensor& weight, int64_t groups);

// Dtype and length of the packed form of a weight.
ScalarType packed_dtype(ScalarType weight);
int64_t packed_conv2d_numel(ScalarType weight, int64_t co, int64_t ci, int64_t kh, int64_t kw,
                            int64_t groups = 1);

}  // namespace ddi
