// Serial on purpose: a thousand channels take about a microsecond, less than waking a thread.
#include "active_channels.h"

namespace ddi {

void active_channels(const uint8_t* open, int64_t samples, int64_t channels, int64_t group_size,
                     int32_t* index, int32_t* count) {
  for (int64_t n = 0; n < samples; ++n, index += channels) {
    int64_t filled = 0;
    for (int64_t first = 0; first < channels; first += group_size, ++open) {
      if (*open == 0) continue;
      const int64_t end = channels - first < group_size ? channels : first + group_size;
      for (int64_t c = first; c < end; ++c) index[filled++] = static_cast<int32_t>(c);
    }
    count[n] = static_cast<int32_t>(filled);
    for (; filled < channels; ++filled) index[filled] = static_cast<int32_t>(channels);
  }
}

}  // namespace ddi
