// The gates of one block for a batch: pooled input -> linear -> LSTM step -> layer bit and channel
// bits; or, without an LSTM, pooled input -> channel bits. Some thousand multiply-adds a sample, so
// what counts is that it is one call: no tensor, no dispatch and no allocation between the steps.
#pragma once

#include <cstdint>

#include "base/parallel.h"

namespace ddi {

// Row-major [out, in] weights, as torch.nn.Linear and LSTMCell keep them (gate order i, f, g, o).
template <class T>
struct GateWeights {
  int64_t channels, hidden;         // hidden 0: no LSTM, so none of its weights and no layer gate
  const T *project, *project_bias;  // [hidden, channels], [hidden]
  const T *w_ih, *w_hh;             // [4 hidden, hidden]
  const T *b_ih, *b_hh;             // [4 hidden]
  const T *layer, *layer_bias;      // [hidden], [1]; nullptr: every sample is kept
  int64_t reduced, groups;          // groups 0: no channel gate
  const T *reduce, *reduce_bias;    // [reduced, channels + hidden], [reduced]
  const T *expand, *expand_bias;    // [groups, reduced], [groups]
};

template <class T>
struct GatePlan {
  GateWeights<T> weights;
  int64_t samples, pixels;
  bool channels_last;  // x is [pixels][channels] in each sample, else [channels][pixels]
  const T* x;
  const T *h, *c;    // [samples, hidden], not read if hidden is 0
  T threshold;       // of the logits: a bit is set above it
  uint8_t* keep;     // [samples]
  uint8_t* open;     // [samples, groups]
  T *h_out, *c_out;  // [samples, hidden], not written if hidden is 0
};

// Bytes of scratch for this many tasks at a time.
template <class T>
int64_t gate_plan_workspace_bytes(const GateWeights<T>& weights, int64_t tasks);

template <class T>
void gate_plan(const GatePlan<T>& args, int64_t tasks, const ParallelFor& parallel_for,
               void* workspace);

}  // namespace ddi
