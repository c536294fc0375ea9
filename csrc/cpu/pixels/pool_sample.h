// The means of an image's channels, which the next gate reads.
#pragma once

#include <algorithm>
#include <numeric>

#include "base/dtypes.h"
#include "micro/micro.h"

namespace ddi {

constexpr int64_t kPixelsPerSum = 256;
constexpr int64_t kChannelsPerSum = 64;

// mean[channels] of y: pixels of contiguous channels, `stride` apart, if channels_last, else
// planes, `stride` apart. In a fixed order. Sums of so many pixels are added up: in one long sum of
// values that are nearly equal, as where little is open, every rounding goes the same way.
template <class T>
void pool_sample(const T* y, bool channels_last, int64_t stride, int64_t channels, int64_t pixels,
                 typename Types<T>::Acc* mean) {
  using Acc = typename Types<T>::Acc;
  std::fill_n(mean, channels, Acc(0));
  const int64_t together = channels_last ? kChannelsPerSum : 1;
  for (int64_t c = 0; c < channels; c += together) {
    const int64_t count = std::min(together, channels - c);
    for (int64_t p = 0; p < pixels; p += kPixelsPerSum) {
      const int64_t n = std::min(kPixelsPerSum, pixels - p);
      Acc part[kChannelsPerSum];
      if (channels_last) {
        micro<T>().sum_pixels(y + p * stride + c, stride, n, count, part);
      } else {
        Acc chains[8] = {};
        for (int64_t i = 0; i < n; ++i) chains[i % 8] += to_float(y[c * stride + p + i]);
        part[0] = std::accumulate(chains, chains + 8, Acc(0));
      }
      for (int64_t i = 0; i < count; ++i) mean[c + i] += part[i];
    }
  }
  for (int64_t c = 0; c < channels; ++c) mean[c] /= static_cast<Acc>(pixels);
}

}  // namespace ddi
