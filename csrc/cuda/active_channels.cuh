// The open channels of each sample, ascending: a block of threads lists one sample, 256 channels a
// step, placed by the votes of its warps, so that the order needs no sort.
#pragma once

#include "warp.cuh"

namespace ddi {

constexpr int kListThreads = 256;

// What follows the open channels in a list.
enum class Rest { kPad, kClosed };  // `channels`, as nobody has it; the closed ones, ascending

// Grid: samples. open[samples, groups], bits; index[samples, channels]; count[samples].
template <Rest kRest>
__global__ void __launch_bounds__(kListThreads)
    active_channels_kernel(const uint8_t* __restrict__ open, int channels, int64_t group_size,
                           int64_t groups, int32_t* __restrict__ index,
                           int32_t* __restrict__ count) {
  __shared__ int votes[kListThreads / 32];
  const int64_t n = blockIdx.x;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int32_t* list = index + n * channels;
  const auto is_open = [&](int64_t c) {
    return c < channels && open[n * groups + c / group_size] != 0;
  };
  int total = channels;
  if (kRest == Rest::kClosed) {
    total = 0;
    for (int64_t first = 0; first < channels; first += kListThreads)
      total += count_threads(is_open(first + threadIdx.x));
  }
  int listed = 0;
  // 64-bit: the last step may pass the largest int.
  for (int64_t first = 0; first < channels; first += kListThreads) {
    const int64_t c = first + threadIdx.x;
    const bool opened = is_open(c);
    const unsigned vote = vote_warp(opened);
    if (lane == 0) votes[warp] = count_bits(vote);
    sync_threads();
    int before = listed + count_bits(vote & ((1u << lane) - 1)), all = 0;
    for (int w = 0; w < kListThreads / 32; ++w) {
      before += w < warp ? votes[w] : 0;
      all += votes[w];
    }
    if (opened) {
      list[before] = static_cast<int>(c);
    } else if (kRest == Rest::kClosed && c < channels) {
      list[total + static_cast<int>(c) - before] = static_cast<int>(c);
    }
    listed += all;
    sync_threads();
  }
  if (kRest == Rest::kPad)
    for (int64_t i = listed + threadIdx.x; i < channels; i += kListThreads) list[i] = channels;
  if (threadIdx.x == 0) count[n] = listed;
}

}  // namespace ddi
