// The gates of a block whose sample one block of threads holds: pooled input -> linear -> LSTM step
// -> bits, in float32. A thread computes an output; there are fewer of these than threads.
#pragma once

#include "resident_image.cuh"

namespace ddi {

// Sizes of a gate; the kernel has room for these.
constexpr int kMaxHidden = 32, kMaxReduced = 32;
constexpr uint64_t kAllOpen = ~uint64_t{0};

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

// The small part of shared memory.
struct StageScratch {
  float means[64], h[kMaxHidden], c[kMaxHidden], x[kMaxHidden], z[4 * kMaxHidden], r[kMaxReduced];
  float partial[kStageThreads][8];
  uint64_t opened;      // bit k: interior channel k is open
  uint64_t barrier[2];  // of the two weight buffers
  int keep, sample;
};

__device__ __forceinline__ float dot(const float* w, const float* v, int n) {
  float sum = 0.f;
  for (int i = 0; i < n; ++i) sum += w[i] * v[i];
  return sum;
}

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// The gates of block b, whose input has IN channels and whose interior C: scratch.keep,
// scratch.opened and the state from means and state.
template <int IN, int C>
__device__ __forceinline__ void decide(const StageGates& g, int b, StageScratch& scratch,
                                       uint8_t* keep, uint8_t* open) {
  const int t = threadIdx.x;
  if (t < g.hidden) scratch.x[t] = dot(g.project + t * IN, scratch.means, IN) + g.project_bias[t];
  sync_threads();
  if (t < 4 * g.hidden)
    scratch.z[t] = dot(g.w_ih + t * g.hidden, scratch.x, g.hidden) +
                   dot(g.w_hh + t * g.hidden, scratch.h, g.hidden) + g.b_ih[t] + g.b_hh[t];
  if (t == 0) scratch.opened = g.reduce == nullptr ? kAllOpen : 0;
  sync_threads();
  if (t < g.hidden) {
    const float *z = scratch.z, add = sigmoid(z[t]), forget = sigmoid(z[g.hidden + t]);
    const float c = forget * scratch.c[t] + add * tanhf(z[2 * g.hidden + t]);
    scratch.c[t] = c;
    scratch.h[t] = sigmoid(z[3 * g.hidden + t]) * tanhf(c);
  }
  sync_threads();
  if (g.reduce != nullptr && t < g.reduced) {
    const float* row = g.reduce + (b * g.reduced + t) * (IN + g.hidden);
    const float r = dot(row, scratch.means, IN) + dot(row + IN, scratch.h, g.hidden) +
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
    const int first = t * g.group_size, last = min(first + g.group_size, C);
    const uint64_t below = last == 64 ? kAllOpen : (uint64_t{1} << last) - 1;
    if (is_open)
      atomicOr(reinterpret_cast<unsigned long long*>(&scratch.opened),
               static_cast<unsigned long long>(below & ~((uint64_t{1} << first) - 1)));
  }
  sync_threads();
}

}  // namespace ddi
