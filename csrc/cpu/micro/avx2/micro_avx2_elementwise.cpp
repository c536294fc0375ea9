// Activations, pooling and conversions for AVX2 + FMA.
#if defined(__x86_64__)
#include <immintrin.h>

#include "base/isa_region.h"
#include "micro/micro.h"
#include "micro/micro_elementwise.h"

DDI_REGION_AVX2
#include "micro/generic/micro_exp.h"
#include "micro_avx2_lanes.h"

#include "micro/generic/micro_elementwise_loops.h"
DDI_REGION_END

namespace ddi {

const ElementwiseMicro<float> kAvx2ElementwiseF32 = elementwise_table<Lanes, float>();
const ElementwiseMicro<bf16> kAvx2ElementwiseBf16 = elementwise_table<Lanes, bf16>();

}  // namespace ddi
#endif
