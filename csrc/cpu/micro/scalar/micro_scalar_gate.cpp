// The micro-kernels of gates in plain C++, for float64 and for machines without a table of their
// own. Sums run in several chains: fast without reordering by the compiler.
#include <cmath>

#include "micro/micro_gate.h"

namespace ddi {
namespace {

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
void linear(const Linear<T>& a) {
  for (int64_t o = 0; o < a.outs; ++o) {
    const T sum = dot(a.weight + o * a.ins, a.in, a.ins) + a.bias[o];
    a.out[o] = a.add ? a.out[o] + sum : sum;
  }
}

template <class T>
T sigmoid(T v) {
  return T(1) / (T(1) + std::exp(-v));
}

template <class T>
void lstm(const T* gates, const T* c, int64_t hidden, T* c_next, T* h_next) {
  for (int64_t j = 0; j < hidden; ++j) {
    const T in = sigmoid(gates[j]), forget = sigmoid(gates[hidden + j]);
    const T cell = std::tanh(gates[2 * hidden + j]), out = sigmoid(gates[3 * hidden + j]);
    c_next[j] = forget * c[j] + in * cell;
    h_next[j] = out * std::tanh(c_next[j]);
  }
}

}  // namespace

const GateMicro<float> kScalarGateF32 = {linear<float>, lstm<float>};
const GateMicro<double> kScalarGateF64 = {linear<double>, lstm<double>};

}  // namespace ddi
