// Winograd transforms for AVX2 + FMA: a panel row is two registers.
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa_region.h"
#include "micro.h"
#include "micro_winograd.h"
#include "winograd.h"

DDI_REGION_AVX2
#include "micro_avx2_lanes.h"
#include "micro_winograd_tiles.h"
DDI_REGION_END

namespace ddi {

const WinogradMicro kWinogradAvx2 = {
    {winograd_input<Lanes, 2>, winograd_input<Lanes, 3>, winograd_input<Lanes, 4>},
    {winograd_output<Lanes, 2>, winograd_output<Lanes, 3>, winograd_output<Lanes, 4>}};

}  // namespace ddi
#endif
