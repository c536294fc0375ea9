// The operator as a function, for convolutions called without a packed weight.
#pragma once

#include "../cpu/conv/gated_conv2d.h"
#include "common.h"

namespace ddi {

Tensor prepack_conv2d_cpu(const Tensor& weight, int64_t groups, bool winograd = false);

// The packed form of a weight of this dtype, or none, contiguous. Its length says whether it holds
// transformed weights, which goes into the shape.
OptionalTensor check_packed(const char* op, const char* name, const OptionalTensor& packed,
                            ScalarType weight, Conv2dShape& s);

}  // namespace ddi
