// The micro-kernels of gates for AVX-512.
#if defined(__x86_64__)
#include <immintrin.h>

#include "base/isa_region.h"
#include "micro/micro.h"
#include "micro/micro_gate.h"

DDI_REGION_AVX512
#include "micro/generic/micro_exp.h"
#include "micro/generic/micro_gate_layers.h"
#include "micro_avx512_lanes.h"
DDI_REGION_END

namespace ddi {

const GateMicro<float> kAvx512GateF32 = {linear<Lanes>, lstm<Lanes>};

}  // namespace ddi
#endif
