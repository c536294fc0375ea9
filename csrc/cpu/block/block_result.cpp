#include "block_result.h"

#include <algorithm>

#include "pixels/pool_sample.h"

namespace ddi {

template <class T>
void BlockResult<T>::finish(int64_t sample, bool kept) const {
  const int64_t numel = channels * pixels;
  if (!kept && x != y) std::copy_n(x + sample * numel, numel, y + sample * numel);
  if (pooled == nullptr) return;
  if (!kept && x_pooled != nullptr) {
    std::copy_n(x_pooled + sample * channels, channels, pooled + sample * channels);
  } else {
    pool_sample(y + sample * numel, channels_last, channels_last ? channels : pixels, channels,
                pixels, pooled + sample * channels);
  }
}

template struct BlockResult<float>;
template struct BlockResult<double>;
template struct BlockResult<half>;
template struct BlockResult<bf16>;

}  // namespace ddi
