// Lists the open channels of every sample: the list half of a gate. One pass over the group bits.
#pragma once

#include <cstdint>

namespace ddi {

// index[samples][channels]: the open channels ascending, then the pad entry `channels`;
// count[samples]: how many are open. open[samples][ceil(channels / group_size)] is 0 or not 0.
void active_channels(const uint8_t* open, int64_t samples, int64_t channels, int64_t group_size,
                     int32_t* index, int32_t* count);

}  // namespace ddi
