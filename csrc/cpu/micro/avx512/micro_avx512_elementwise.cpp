// Activations, pooling and conversions for AVX-512.
#if defined(__x86_64__)
#include <immintrin.h>

#include "base/isa_region.h"
#include "micro/micro.h"
#include "micro/micro_elementwise.h"

DDI_REGION_AVX512
#include "micro/generic/micro_exp.h"
#include "micro_avx512_lanes.h"

#include "micro/generic/micro_elementwise_loops.h"
DDI_REGION_END

namespace ddi {

const ElementwiseMicro<float> kAvx512ElementwiseF32 = elementwise_table<Lanes, float>();
const ElementwiseMicro<bf16> kAvx512ElementwiseBf16 = elementwise_table<Lanes, bf16>();

}  // namespace ddi
#endif
