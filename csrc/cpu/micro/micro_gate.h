// The micro-kernels of gates, which read the means of an image: matrix times vector, and the step
// of an LSTM cell. A few thousand multiply-adds in all, so that the exponentials of libm would take
// longer than they do.
#pragma once

#include <cstdint>

#include "base/isa.h"

namespace ddi {

// out[outs] = weight[outs][ins] in + bias, plus what `out` holds if `add`.
template <class T>
struct Linear {
  const T *weight, *bias;  // row-major
  const T* in;
  int64_t ins, outs;
  T* out;
  bool add = false;
};

template <class T>
struct GateMicro {
  void (*linear)(const Linear<T>& layer);

  // The next state of a cell, [hidden], from the sums that go into its gates, [4][hidden] in the
  // order input, forget, cell, output.
  void (*lstm)(const T* gates, const T* c, int64_t hidden, T* c_next, T* h_next);
};

extern const GateMicro<float> kScalarGateF32;
extern const GateMicro<double> kScalarGateF64;
#if defined(__x86_64__)
extern const GateMicro<float> kAvx2GateF32;
extern const GateMicro<float> kAvx512GateF32;
#elif defined(DDI_NEON)
extern const GateMicro<float> kNeonGateF32;
#endif

// The table for current_isa(); float64 is always scalar.
template <class T>
const GateMicro<T>& gate_micro();

}  // namespace ddi
