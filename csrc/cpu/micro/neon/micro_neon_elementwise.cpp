// Activations, pooling and conversions for NEON.
#include "base/isa.h"

#if defined(DDI_NEON)
#include <arm_neon.h>

#include "base/isa_region.h"
#include "micro/micro.h"
#include "micro/micro_elementwise.h"

DDI_REGION_NEON
#include "micro_neon_pixels.h"

#include "micro_neon_lanes.h"

#include "micro/generic/micro_exp.h"

#include "micro/generic/micro_elementwise_loops.h"
DDI_REGION_END

namespace ddi {

const ElementwiseMicro<float> kNeonElementwiseF32 = elementwise_table<Lanes, float>();
const ElementwiseMicro<bf16> kNeonElementwiseBf16 = elementwise_table<Lanes, bf16>();

}  // namespace ddi
#endif
