// The operator as a function, for gated_conv2d called without a packed weight.
#pragma once

#include "common.h"

namespace ddi {

Tensor prepack_conv2d_cpu(const Tensor& weight, int64_t groups);

}  // namespace ddi
