// Winograd transforms for AVX-512: a panel row is one register.
#if defined(__x86_64__)
#include <immintrin.h>

#include "base/isa_region.h"
#include "micro/micro.h"
#include "micro/micro_winograd.h"
#include "micro/winograd.h"

DDI_REGION_AVX512
#include "micro/generic/micro_winograd_tiles.h"
#include "micro_avx512_lanes.h"
DDI_REGION_END

namespace ddi {

const WinogradMicro kAvx512Winograd = {
    {winograd_input<Lanes, 2>, winograd_input<Lanes, 3>, winograd_input<Lanes, 4>},
    {winograd_output<Lanes, 2>, winograd_output<Lanes, 3>, winograd_output<Lanes, 4>}};

}  // namespace ddi
#endif
