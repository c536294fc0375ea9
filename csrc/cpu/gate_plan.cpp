// Per sample: pool, project, LSTM step, heads. Everything of a sample stays in a few hundred values
// of scratch. Sums run in several chains: fast without reordering by the compiler, and the same for
// every thread count.
#include "gate_plan.h"

#include <algorithm>
#include <cmath>

#include "micro.h"

namespace ddi {
namespace {

template <class T>
int64_t scratch_numel(const GateWeights<T>& w) {
  return 2 * w.channels + w.hidden + 4 * w.hidden + (w.channels + w.hidden) + w.reduced;
}

template <class T>
T dot(const T* a, const T* b, int64_t n) {
  constexpr int kChains = 8;
  T sum[kChains] = {};
  int64_t i = 0;
  for (; i + kChains <= n; i += kChains) {
    for (int k = 0; k < kChains; ++k) sum[k] += a[i + k] * b[i + k];
  }
  for (int k = 0; i + k < n; ++k) sum[k] += a[i + k] * b[i + k];
  return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

template <class T>
void linear(const T* w, const T* bias, const T* in, int64_t n_in, int64_t n_out, T* out) {
  for (int64_t o = 0; o < n_out; ++o) out[o] = dot(w + o * n_in, in, n_in) + bias[o];
}

template <class T>
T sigmoid(T v) {
  return T(1) / (T(1) + std::exp(-v));
}

// Means over the pixels. Stretches of pixels are summed first, then their sums, which keeps the
// rounding error of a large map small.
template <class T>
void pool(const GatePlan<T>& a, const T* x, T* part, T* mean) {
  const int64_t channels = a.weights.channels;
  constexpr int64_t kStretch = 32;
  std::fill(mean, mean + channels, T(0));
  for (int64_t p = 0; p < a.pixels; p += kStretch) {
    const int64_t end = std::min(p + kStretch, a.pixels);
    if (a.channels_last) {
      micro<T>().sum_pixels(x + p * channels, channels, end - p, channels, part);
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        T sum = 0;
        for (int64_t q = p; q < end; ++q) sum += x[c * a.pixels + q];
        part[c] = sum;
      }
    }
    for (int64_t c = 0; c < channels; ++c) mean[c] += part[c];
  }
  for (int64_t c = 0; c < channels; ++c) mean[c] /= static_cast<T>(a.pixels);
}

template <class T>
void plan_sample(const GatePlan<T>& a, int64_t n, T* scratch) {
  const GateWeights<T>& w = a.weights;
  T* features = scratch;  // pooled input, then the new hidden state
  T* part = features + w.channels + w.hidden;
  T* projected = part + w.channels;
  T* gates = projected + w.hidden;
  T* reduced = gates + 4 * w.hidden;
  pool(a, a.x + n * w.channels * a.pixels, part, features);
  linear(w.project, w.project_bias, features, w.channels, w.hidden, projected);
  const T *h = a.h + n * w.hidden, *c = a.c + n * w.hidden;
  for (int64_t j = 0; j < 4 * w.hidden; ++j) {
    gates[j] = (dot(w.w_ih + j * w.hidden, projected, w.hidden) + w.b_ih[j]) +
               (dot(w.w_hh + j * w.hidden, h, w.hidden) + w.b_hh[j]);
  }
  T *h_out = a.h_out + n * w.hidden, *c_out = a.c_out + n * w.hidden;
  for (int64_t j = 0; j < w.hidden; ++j) {
    const T in = sigmoid(gates[j]), forget = sigmoid(gates[w.hidden + j]);
    const T cell = std::tanh(gates[2 * w.hidden + j]), out = sigmoid(gates[3 * w.hidden + j]);
    c_out[j] = forget * c[j] + in * cell;
    h_out[j] = out * std::tanh(c_out[j]);
    features[w.channels + j] = h_out[j];
  }
  // A NaN logit compares false: the gate closes, as in the reference.
  a.keep[n] =
      w.layer == nullptr || dot(w.layer, h_out, w.hidden) + w.layer_bias[0] > a.threshold ? 1 : 0;
  if (w.groups == 0) return;
  linear(w.reduce, w.reduce_bias, features, w.channels + w.hidden, w.reduced, reduced);
  for (int64_t r = 0; r < w.reduced; ++r) reduced[r] = reduced[r] < T(0) ? T(0) : reduced[r];
  for (int64_t g = 0; g < w.groups; ++g) {
    const T logit = dot(w.expand + g * w.reduced, reduced, w.reduced) + w.expand_bias[g];
    a.open[n * w.groups + g] = logit > a.threshold ? 1 : 0;
  }
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
