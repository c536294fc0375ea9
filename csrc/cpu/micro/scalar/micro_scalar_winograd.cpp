// Winograd transforms in plain C++, for machines without a table of their own.
#include "base/isa_region.h"
#include "micro/micro.h"
#include "micro/micro_winograd.h"
#include "micro/winograd.h"
#include "micro_scalar_lanes.h"

// Without a region around it: what it holds is compiled for the baseline.
#include "micro/generic/micro_winograd_tiles.h"

namespace ddi {
const WinogradMicro kScalarWinograd = {
    {winograd_input<Lanes, 2>, winograd_input<Lanes, 3>, winograd_input<Lanes, 4>},
    {winograd_output<Lanes, 2>, winograd_output<Lanes, 3>, winograd_output<Lanes, 4>}};

}  // namespace ddi
