// A stage of a CIFAR ResNet, gates included, in one launch: a block of threads keeps one sample in
// shared memory and walks all residual blocks of the stage on it. The image is [W + 2, W + 2, C]
// bfloat16 with a border of zeros; weights come a convolution at a time, [tap, out, in], copied in
// bulk while the one before is computed. A skipped block costs its gates and a branch: no launch,
// no list, no host. Rows of 16 bytes are swizzled so that neither reading nor writing them meets a
// bank twice (`element` below; the tests prove it).
#pragma once

#include "warp.cuh"

namespace ddi {

// Sizes of a gate; the kernel has room for these.
constexpr int kMaxHidden = 32, kMaxReduced = 32, kStageThreads = 256;

// What a block of the stage needs beside its convolutions' weights; all float32 and on the device.
struct StageGates {
  const float *project, *project_bias;     // [hidden, C], [hidden]
  const float *w_ih, *w_hh, *b_ih, *b_hh;  // [4 hidden, hidden] twice, [4 hidden] twice
  const float *layer, *layer_bias;         // [blocks, hidden], [blocks], or null
  const float *reduce, *reduce_bias;  // [blocks, reduced, C + hidden], [blocks, reduced], or null
  const float *expand, *expand_bias;  // [blocks, groups, reduced], [blocks, groups]
  int hidden, reduced, groups, group_size;
  float threshold;
};

struct StageData {
  const uint16_t* x;        // [samples, W, W, C], bfloat16 as all 16-bit words here
  const uint16_t* weights;  // [blocks, 2, 9, C, C], rows swizzled by `element`
  const float* biases;      // [blocks, 2, C]
  const float *h, *c;       // [samples, hidden]
  uint16_t* y;              // as x
  float *h_next, *c_next;
  uint8_t *keep, *open;  // [samples, blocks], [samples, blocks, groups]
  int* queue;            // one int, 0 at first
  int samples, blocks;
};

// Where 16 bytes, channels 8 chunk to 8 chunk + 7 of a row of C, lie: in elements. A row is a pixel
// of an image or an output channel of the weights.
template <int C>
__host__ __device__ __forceinline__ constexpr int element(int row, int chunk) {
  constexpr int kChunks = C / 8;
  const int turn = kChunks == 2 ? (row >> 2) & 1 : kChunks == 4 ? (row >> 1) & 3 : row & 7;
  return row * C + ((chunk ^ turn) & (kChunks - 1)) * 8;
}

// Shapes of a stage: WARPS_M x WARPS_N warps over pixels and output channels.
template <int C_, int W_, int WARPS_M, int WARPS_N>
struct Stage {
  static constexpr int C = C_, W = W_, P = W + 2, kWarpsM = WARPS_M;
  static constexpr int kImage = P * P * C, kFilter = 9 * C * C;                // elements
  static constexpr int kRows = W * W / 16 / WARPS_M, kCols = C / 8 / WARPS_N;  // tiles of a warp
  static_assert(32 * WARPS_M * WARPS_N == kStageThreads && kRows >= 1 && kCols % 2 == 0, "");
};

// The small part of shared memory.
struct StageScratch {
  float means[64], h[kMaxHidden], c[kMaxHidden], x[kMaxHidden], z[4 * kMaxHidden], r[kMaxReduced];
  float partial[kStageThreads][8];
  uint64_t opened;      // bit k: interior channel k is open
  uint64_t barrier[2];  // of the two weight buffers
  int keep, sample;
};

template <class S>
constexpr int stage_shared_bytes() {
  return 2 * (2 * S::kImage + 2 * S::kFilter) + static_cast<int>(sizeof(StageScratch));
}

// out = relu(conv(in) + bias), zero in closed channels; or, LAST, out = relu(conv(in) + bias +
// out), from open channels alone.
template <class S, bool LAST>
__device__ __forceinline__ void convolve(const uint16_t* in, uint16_t* out, const uint16_t* w,
                                         const float* bias, uint64_t opened) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int first_row = warp % S::kWarpsM * S::kRows * 16,
            first_col = warp / S::kWarpsM * S::kCols * 8;
  float acc[S::kRows][S::kCols][4] = {};
  int pixel[S::kRows];  // of this lane's row of each tile, at tap (0, 0)
#pragma unroll
  for (int i = 0; i < S::kRows; ++i) {
    const int m = first_row + i * 16 + (lane & 15);
    pixel[i] = m / S::W * S::P + m % S::W;
  }
#pragma unroll(S::C == 16 ? 9 : 3)
  for (int tap = 0; tap < 9; ++tap) {
    const int shift = tap / 3 * S::P + tap % 3;
#pragma unroll
    for (int k = 0; k < S::C / 16; ++k) {
      if (LAST && ((opened >> (k * 16)) & 0xffff) == 0) continue;  // the same for all threads
      uint32_t b[S::kCols][2];
#pragma unroll
      for (int j = 0; j < S::kCols; j += 2) {
        const int co = first_col + j * 8 + (lane & 7) + (lane >> 4) * 8;
        uint32_t r[4];
        load_matrices(r, w + tap * S::C * S::C + element<S::C>(co, k * 2 + ((lane >> 3) & 1)));
        b[j][0] = r[0], b[j][1] = r[1], b[j + 1][0] = r[2], b[j + 1][1] = r[3];
      }
#pragma unroll
      for (int i = 0; i < S::kRows; ++i) {
        uint32_t a[4];
        load_matrices(a, in + element<S::C>(pixel[i] + shift, k * 2 + (lane >> 4)));
#pragma unroll
        for (int j = 0; j < S::kCols; ++j) {
          // Uniform within a warp, whose columns these are.
          if (LAST || ((opened >> (first_col + j * 8)) & 0xff) != 0)
            multiply(acc[i][j], a, b[j][0], b[j][1]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < S::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < S::kCols; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = first_row + i * 16 + (lane >> 2) + half * 8;
        const int c = first_col + j * 8 + (lane & 3) * 2;
        const int p = (m / S::W + 1) * S::P + m % S::W + 1;
        uint32_t* at = reinterpret_cast<uint32_t*>(out + element<S::C>(p, c / 8) + (c & 7));
        float low = acc[i][j][half * 2] + bias[c], high = acc[i][j][half * 2 + 1] + bias[c + 1];
        if (LAST) {
          low += as_float(*at << 16), high += as_float(*at & 0xffff0000u);
        }
        // By comparison, which NaN passes.
        low = low < 0.f ? 0.f : low, high = high < 0.f ? 0.f : high;
        if (!LAST) {
          low = (opened >> c) & 1 ? low : 0.f, high = (opened >> (c + 1)) & 1 ? high : 0.f;
        }
        *at = pack_bf16(low, high);
      }
    }
  }
}

// scratch.means = the means of the image over its pixels. A thread adds up one 16-byte chunk of
// every (kStageThreads / chunks)-th pixel, then one thread a channel those sums, in a fixed order.
template <class S>
__device__ __forceinline__ void pool(const uint16_t* image, StageScratch& scratch) {
  constexpr int kChunks = S::C / 8, kStep = kStageThreads / kChunks;
  const int chunk = threadIdx.x % kChunks;
  float sum[8] = {};
  for (int m = threadIdx.x / kChunks; m < S::W * S::W; m += kStep) {
    const int p = (m / S::W + 1) * S::P + m % S::W + 1;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(image + element<S::C>(p, chunk));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[2 * i] += as_float(words[i] << 16);
      sum[2 * i + 1] += as_float(words[i] & 0xffff0000u);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) scratch.partial[threadIdx.x][i] = sum[i];
  sync_threads();
  if (threadIdx.x < S::C) {
    float total = 0.f;
    for (int t = 0; t < kStep; ++t)
      total += scratch.partial[t * kChunks + threadIdx.x / 8][threadIdx.x % 8];
    scratch.means[threadIdx.x] = total / (S::W * S::W);
  }
  sync_threads();
}

__device__ __forceinline__ float dot(const float* w, const float* v, int n) {
  float sum = 0.f;
  for (int i = 0; i < n; ++i) sum += w[i] * v[i];
  return sum;
}

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// The gates of block b: scratch.keep, scratch.opened and the state from means and state.
template <class S>
__device__ __forceinline__ void decide(const StageGates& g, int b, StageScratch& scratch,
                                       uint8_t* keep, uint8_t* open) {
  const int t = threadIdx.x;
  if (t < g.hidden)
    scratch.x[t] = dot(g.project + t * S::C, scratch.means, S::C) + g.project_bias[t];
  sync_threads();
  if (t < 4 * g.hidden)
    scratch.z[t] = dot(g.w_ih + t * g.hidden, scratch.x, g.hidden) +
                   dot(g.w_hh + t * g.hidden, scratch.h, g.hidden) + g.b_ih[t] + g.b_hh[t];
  if (t == 0) scratch.opened = g.reduce == nullptr ? ~uint64_t{0} : 0;
  sync_threads();
  if (t < g.hidden) {
    const float *z = scratch.z, add = sigmoid(z[t]), forget = sigmoid(z[g.hidden + t]);
    const float c = forget * scratch.c[t] + add * tanhf(z[2 * g.hidden + t]);
    scratch.c[t] = c;
    scratch.h[t] = sigmoid(z[3 * g.hidden + t]) * tanhf(c);
  }
  sync_threads();
  if (g.reduce != nullptr && t < g.reduced) {
    const float* row = g.reduce + (b * g.reduced + t) * (S::C + g.hidden);
    const float r = dot(row, scratch.means, S::C) + dot(row + S::C, scratch.h, g.hidden) +
                    g.reduce_bias[b * g.reduced + t];
    scratch.r[t] = r < 0.f ? 0.f : r;
  }
  if (t == 0) {
    scratch.keep = g.layer == nullptr ||
                   dot(g.layer + b * g.hidden, scratch.h, g.hidden) + g.layer_bias[b] > g.threshold;
    *keep = static_cast<uint8_t>(scratch.keep);
  }
  sync_threads();
  if (g.reduce != nullptr && t < g.groups) {
    const float logit = dot(g.expand + (b * g.groups + t) * g.reduced, scratch.r, g.reduced) +
                        g.expand_bias[b * g.groups + t];
    const bool is_open = logit > g.threshold;
    open[t] = is_open;
    const int first = t * g.group_size, last = min(first + g.group_size, S::C);
    const uint64_t below = last == 64 ? ~uint64_t{0} : (uint64_t{1} << last) - 1;
    if (is_open)
      atomicOr(reinterpret_cast<unsigned long long*>(&scratch.opened),
               static_cast<unsigned long long>(below & ~((uint64_t{1} << first) - 1)));
  }
  sync_threads();
}

// A sample between the image in shared memory and its place in memory, 16 bytes a thread and turn.
template <class S, bool LOAD>
__device__ __forceinline__ void move_image(uint16_t* image, uint16_t* memory) {
  constexpr int kChunks = S::C / 8;
  for (int i = threadIdx.x; i < S::W * S::W * kChunks; i += kStageThreads) {
    const int m = i / kChunks, p = (m / S::W + 1) * S::P + m % S::W + 1;
    uint4* inside = reinterpret_cast<uint4*>(image + element<S::C>(p, i % kChunks));
    uint4* outside = reinterpret_cast<uint4*>(memory) + i;
    if (LOAD) {
      *inside = *outside;
    } else {
      *outside = *inside;
    }
  }
}

// The two buffers of weights: convolution `number` of the stage comes into buffer `slot`.
template <class S>
struct Weights {
  uint16_t* buffer;
  uint64_t* barrier;
  const uint16_t* source;
  uint32_t parity = 0;  // a bit for each buffer

  __device__ __forceinline__ uint16_t* in(int slot) { return buffer + slot * S::kFilter; }

  __device__ __forceinline__ void start(int number, int slot) {
    if (threadIdx.x == 0)
      start_copy(in(slot), source + static_cast<int64_t>(number) * S::kFilter, S::kFilter * 2,
                 barrier + slot);
  }

  __device__ __forceinline__ void wait(int slot) {
    wait_copy(barrier + slot, (parity >> slot) & 1);
    parity ^= 1u << slot;
  }
};

template <class S>
__device__ __forceinline__ void run_sample(const StageData& d, const StageGates& g, int n,
                                           uint16_t* X, uint16_t* Y, Weights<S>& weights,
                                           StageScratch& scratch) {
  const int64_t image = static_cast<int64_t>(n) * S::W * S::W * S::C, t = threadIdx.x;
  weights.start(0, 0);
  move_image<S, true>(X, const_cast<uint16_t*>(d.x) + image);
  if (t < g.hidden) {
    scratch.h[t] = d.h[static_cast<int64_t>(n) * g.hidden + t];
    scratch.c[t] = d.c[static_cast<int64_t>(n) * g.hidden + t];
  }
  sync_threads();
  bool changed = true;
  for (int b = 0; b < d.blocks; ++b) {
    if (changed) pool<S>(X, scratch);
    const int64_t bit = static_cast<int64_t>(n) * d.blocks + b;
    decide<S>(g, b, scratch, d.keep + bit, d.open + bit * g.groups);
    changed = scratch.keep != 0;
    const uint64_t opened = scratch.opened;
    weights.wait(0);  // what was started before it was known to be needed
    if (changed) {
      const float* bias = d.biases + static_cast<int64_t>(b) * 2 * S::C;
      weights.start(2 * b + 1, 1);
      convolve<S, false>(X, Y, weights.in(0), bias, opened);
      sync_threads();
      if (b + 1 < d.blocks) weights.start(2 * b + 2, 0);
      weights.wait(1);
      convolve<S, true>(Y, X, weights.in(1), bias + S::C, opened);
    } else if (b + 1 < d.blocks) {
      sync_threads();
      weights.start(2 * b + 2, 0);
    }
    sync_threads();
  }
  move_image<S, false>(X, d.y + image);
  if (t < g.hidden) {
    d.h_next[static_cast<int64_t>(n) * g.hidden + t] = scratch.h[t];
    d.c_next[static_cast<int64_t>(n) * g.hidden + t] = scratch.c[t];
  }
  sync_threads();
}

template <class S>
__global__ void __launch_bounds__(kStageThreads, 1)
    resident_stage_kernel(const StageData d, const StageGates g) {
#if defined(DDI_EMULATE) || __CUDA_ARCH__ >= 900  // bulk copies
  uint16_t* X = reinterpret_cast<uint16_t*>(shared_memory());
  uint16_t* Y = X + S::kImage;
  uint16_t* buffer = Y + S::kImage;
  StageScratch& scratch = *reinterpret_cast<StageScratch*>(buffer + 2 * S::kFilter);
  if (threadIdx.x == 0) {
    init_barrier(scratch.barrier);
    init_barrier(scratch.barrier + 1);
  }
  // The borders stay zero; all else is written before it is read.
  for (int i = threadIdx.x; i < S::kImage; i += kStageThreads) X[i] = Y[i] = 0;
  Weights<S> weights{buffer, scratch.barrier, d.weights};
  for (;;) {
    sync_threads();
    if (threadIdx.x == 0) scratch.sample = atomicAdd(d.queue, 1);
    sync_threads();
    const int n = scratch.sample;
    if (n >= d.samples) return;
    run_sample<S>(d, g, n, X, Y, weights, scratch);
  }
#endif
}

using Stage16 = Stage<16, 32, 8, 1>;
using Stage32 = Stage<32, 16, 8, 1>;
using Stage64 = Stage<64, 8, 4, 2>;

}  // namespace ddi
