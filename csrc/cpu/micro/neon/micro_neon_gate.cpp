// The micro-kernels of gates for NEON.
#include "base/isa.h"

#if defined(DDI_NEON)
#include <arm_neon.h>

#include "base/isa_region.h"
#include "micro/micro.h"
#include "micro/micro_gate.h"

DDI_REGION_NEON
#include "micro_neon_pixels.h"

#include "micro_neon_lanes.h"

#include "micro/generic/micro_exp.h"
#include "micro/generic/micro_gate_layers.h"
DDI_REGION_END

namespace ddi {

const GateMicro<float> kNeonGateF32 = {linear<Lanes>, lstm<Lanes>};

}  // namespace ddi
#endif
