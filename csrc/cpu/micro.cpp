// Picks the micro-kernels of the instruction set in force.
#include "micro.h"

#include "isa.h"
#include "micro_depthwise.h"

namespace ddi {

template <>
const Micro<float>& micro<float>() {
#if defined(__x86_64__)
  switch (current_isa()) {
    case Isa::kAvx512:
      return kAvx512F32;
    case Isa::kAvx2:
      return kAvx2F32;
    case Isa::kScalar:
      break;
  }
#endif
  return kScalarF32;
}

template <>
const Micro<double>& micro<double>() {
  return kScalarF64;
}

template <>
DepthwiseTileFn<float> depthwise_tile<float>() {
#if defined(__x86_64__)
  switch (current_isa()) {
    case Isa::kAvx512:
      return kDepthwiseAvx512F32;
    case Isa::kAvx2:
      return kDepthwiseAvx2F32;
    case Isa::kScalar:
      break;
  }
#endif
  return kDepthwiseScalarF32;
}

template <>
DepthwiseTileFn<double> depthwise_tile<double>() {
  return kDepthwiseScalarF64;
}

}  // namespace ddi
