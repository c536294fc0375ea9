// Per sample: pool, project, LSTM step, heads. Everything of a sample stays in a few hundred values
// of scratch, and is the same for every thread count.
#include "gate_plan.h"

#include <algorithm>

#include "micro/micro_gate.h"
#include "pixels/pool_sample.h"

namespace ddi {
namespace {

template <class T>
int64_t scratch_numel(const GateWeights<T>& w) {
  return w.channels + 6 * w.hidden + w.reduced + std::max<int64_t>(w.groups, 1);
}

// The LSTM's next state, which goes behind the means in `features` as well.
template <class T>
void step(const GatePlan<T>& a, int64_t n, T* features, T* projected, T* gates) {
  const GateWeights<T>& w = a.weights;
  const GateMicro<T>& micro = gate_micro<T>();
  const int64_t hidden = w.hidden, at = n * hidden;
  micro.linear({w.project, w.project_bias, features, w.channels, hidden, projected});
  micro.linear({w.w_ih, w.b_ih, projected, hidden, 4 * hidden, gates});
  micro.linear({w.w_hh, w.b_hh, a.h + at, hidden, 4 * hidden, gates, true});
  micro.lstm(gates, a.c + at, hidden, a.c_out + at, a.h_out + at);
  std::copy_n(a.h_out + at, hidden, features + w.channels);
}

template <class T>
void plan_sample(const GatePlan<T>& a, int64_t n, T* scratch) {
  const GateWeights<T>& w = a.weights;
  const GateMicro<T>& micro = gate_micro<T>();
  T* features = scratch;  // pooled input, then the new hidden state
  T* projected = features + w.channels + w.hidden;
  T* gates = projected + w.hidden;
  T* reduced = gates + 4 * w.hidden;
  T* logits = reduced + w.reduced;
  const T* x = a.x + n * w.channels * a.pixels;
  if (a.pixels == 1) {
    std::copy_n(x, w.channels, features);
  } else {
    const int64_t stride = a.channels_last ? w.channels : a.pixels;
    pool_sample(x, a.channels_last, stride, w.channels, a.pixels, features);
  }
  if (w.hidden > 0) step(a, n, features, projected, gates);
  // A NaN logit compares false: the gate closes, as in the reference.
  a.keep[n] = 1;
  if (w.layer != nullptr) {
    micro.linear({w.layer, w.layer_bias, features + w.channels, w.hidden, 1, logits});
    a.keep[n] = logits[0] > a.threshold ? 1 : 0;
  }
  if (w.groups == 0) return;
  micro.linear({w.reduce, w.reduce_bias, features, w.channels + w.hidden, w.reduced, reduced});
  for (int64_t r = 0; r < w.reduced; ++r) reduced[r] = reduced[r] < T(0) ? T(0) : reduced[r];
  micro.linear({w.expand, w.expand_bias, reduced, w.reduced, w.groups, logits});
  for (int64_t g = 0; g < w.groups; ++g) a.open[n * w.groups + g] = logits[g] > a.threshold ? 1 : 0;
}

}  // namespace

template <class T>
int64_t gate_plan_workspace_bytes(const GateWeights<T>& weights, int64_t tasks) {
  return tasks * scratch_numel(weights) * static_cast<int64_t>(sizeof(T));
}

template <class T>
void gate_plan(const GatePlan<T>& args, int64_t tasks, const ParallelFor& parallel_for,
               void* workspace) {
  const int64_t numel = scratch_numel(args.weights);
  parallel_for(tasks, [&](int64_t task) {
    T* scratch = static_cast<T*>(workspace) + task * numel;
    const int64_t end = args.samples * (task + 1) / tasks;
    for (int64_t n = args.samples * task / tasks; n < end; ++n) plan_sample(args, n, scratch);
  });
}

template int64_t gate_plan_workspace_bytes<float>(const GateWeights<float>&, int64_t);
template int64_t gate_plan_workspace_bytes<double>(const GateWeights<double>&, int64_t);
template void gate_plan<float>(const GatePlan<float>&, int64_t, const ParallelFor&, void*);
template void gate_plan<double>(const GatePlan<double>&, int64_t, const ParallelFor&, void*);

}  // namespace ddi
