// Images that stay in shared memory: W x W pixels of C channels, bfloat16, with a border of zeros.
// Where their elements lie, how they come and go, and their means.
#pragma once

#include "warp.cuh"

namespace ddi {

constexpr int kStageThreads = 256;

// Where 16 bytes, channels 8 chunk to 8 chunk + 7 of a row of C, lie: in elements. A row is a pixel
// of an image or an output channel of the weights.
template <int C>
__host__ __device__ __forceinline__ constexpr int element(int row, int chunk) {
  constexpr int kChunks = C / 8;
  const int turn = kChunks == 2 ? (row >> 2) & 1 : kChunks == 4 ? (row >> 1) & 3 : row & 7;
  return row * C + ((chunk ^ turn) & (kChunks - 1)) * 8;
}

// An image in shared memory: W x W pixels of C channels, a border of zeros around them.
template <int C_, int W_>
struct Image {
  static constexpr int C = C_, W = W_, P = W + 2, kElements = P * P * C;

  // The place of a pixel, border included.
  static __device__ __forceinline__ constexpr int place(int row, int col) { return row * P + col; }
  static __device__ __forceinline__ constexpr int pixel(int m) {
    return place(m / W + 1, m % W + 1);
  }
  // Of output pixel m's window, at tap (0, 0); and the other taps from there.
  static __device__ __forceinline__ constexpr int window(int m) { return place(m / W, m % W); }
  static __device__ __forceinline__ constexpr int shift(int tap) { return place(tap / 3, tap % 3); }
};

// An entry block's input: columns are sorted, even ones first, so that its windows, two columns
// apart, are neighbours.
template <int C_, int W_>
struct SortedImage {
  static constexpr int C = C_, W = W_, P = W + 2, kElements = P * P * C;

  static __device__ __forceinline__ constexpr int place(int row, int col) {
    return row * P + (col & 1) * (P / 2) + col / 2;
  }
  static __device__ __forceinline__ constexpr int pixel(int m) {
    return place(m / W + 1, m % W + 1);
  }
  static __device__ __forceinline__ constexpr int window(int m) {
    return place(m / (W / 2) * 2, m % (W / 2) * 2);
  }
  static __device__ __forceinline__ constexpr int shift(int tap) { return place(tap / 3, tap % 3); }
};

// A sample between the image in shared memory and its place in memory, 16 bytes a thread and turn.
template <class M, bool LOAD>
__device__ __forceinline__ void move_image(uint16_t* image, uint16_t* memory) {
  constexpr int kChunks = M::C / 8;
  for (int i = threadIdx.x; i < M::W * M::W * kChunks; i += kStageThreads) {
    uint4* inside =
        reinterpret_cast<uint4*>(image + element<M::C>(M::pixel(i / kChunks), i % kChunks));
    uint4* outside = reinterpret_cast<uint4*>(memory) + i;
    if (LOAD) {
      *inside = *outside;
    } else {
      *outside = *inside;
    }
  }
}

template <class M>
__device__ __forceinline__ void clear_border(uint16_t* image) {
  constexpr int kChunks = M::C / 8;
  for (int i = threadIdx.x; i < M::P * M::P * kChunks; i += kStageThreads) {
    const int row = i / kChunks / M::P, col = i / kChunks % M::P;
    if (row % (M::P - 1) == 0 || col % (M::P - 1) == 0)
      *reinterpret_cast<uint4*>(image + element<M::C>(M::place(row, col), i % kChunks)) = uint4{};
  }
}

// means[C] of the image over its pixels. A thread adds up one 16-byte chunk of
// every (kStageThreads / chunks)-th pixel, then one thread a channel those sums, in a fixed order.
template <class M>
__device__ __forceinline__ void pool(const uint16_t* image, float (&partial)[kStageThreads][8],
                                     float* means) {
  constexpr int kChunks = M::C / 8, kStep = kStageThreads / kChunks;
  const int chunk = threadIdx.x % kChunks;
  float sum[8] = {};
  for (int m = threadIdx.x / kChunks; m < M::W * M::W; m += kStep) {
    const uint32_t* words =
        reinterpret_cast<const uint32_t*>(image + element<M::C>(M::pixel(m), chunk));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[2 * i] += as_float(words[i] << 16);
      sum[2 * i + 1] += as_float(words[i] & 0xffff0000u);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) partial[threadIdx.x][i] = sum[i];
  sync_threads();
  if (threadIdx.x < M::C) {
    float total = 0.f;
    for (int t = 0; t < kStep; ++t)
      total += partial[t * kChunks + threadIdx.x / 8][threadIdx.x % 8];
    means[threadIdx.x] = total / (M::W * M::W);
  }
  sync_threads();
}

}  // namespace ddi
