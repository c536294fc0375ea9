// The means of an image's channels, which the next gate reads.
#pragma once

#include "dtypes.h"
#include "micro.h"

namespace ddi {

// mean[channels] of y: pixels of contiguous channels, `stride` apart, if channels_last, else
// planes, `stride` apart. In a fixed order.
template <class T>
void pool_sample(const T* y, bool channels_last, int64_t stride, int64_t channels, int64_t pixels,
                 typename Types<T>::Acc* mean) {
  using Acc = typename Types<T>::Acc;
  if (channels_last) {
    micro<T>().sum_pixels(y, stride, pixels, channels, mean);
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      Acc chains[8] = {};
      for (int64_t i = 0; i < pixels; ++i) chains[i % 8] += to_float(y[c * stride + i]);
      mean[c] = 0;
      for (const Acc chain : chains) mean[c] += chain;
    }
  }
  for (int64_t c = 0; c < channels; ++c) mean[c] /= static_cast<Acc>(pixels);
}

}  // namespace ddi
