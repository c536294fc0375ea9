// Activations, pooling and conversions in plain C++, for machines without a table of their own.
#include "base/isa_region.h"
#include "micro/micro_elementwise.h"
#include "micro_scalar_lanes.h"

// Without a region around them: what they hold is compiled for the baseline.
#include "micro/generic/micro_exp.h"

#include "micro/generic/micro_elementwise_loops.h"

namespace ddi {

const ElementwiseMicro<float> kScalarElementwiseF32 = elementwise_table<Lanes, float>();
const ElementwiseMicro<bf16> kScalarElementwiseBf16 = elementwise_table<Lanes, bf16>();

}  // namespace ddi
