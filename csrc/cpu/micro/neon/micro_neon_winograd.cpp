// Winograd transforms for NEON: a panel row is four registers.
#include "base/isa.h"

#if defined(DDI_NEON)
#include <arm_neon.h>

#include "base/isa_region.h"
#include "micro/micro.h"
#include "micro/micro_winograd.h"
#include "micro/winograd.h"

DDI_REGION_NEON
#include "micro_neon_pixels.h"

#include "micro/generic/micro_winograd_tiles.h"
#include "micro_neon_lanes.h"
DDI_REGION_END

namespace ddi {

const WinogradMicro kNeonWinograd = {
    {winograd_input<Lanes, 2>, winograd_input<Lanes, 3>, winograd_input<Lanes, 4>},
    {winograd_output<Lanes, 2>, winograd_output<Lanes, 3>, winograd_output<Lanes, 4>}};

}  // namespace ddi
#endif
