// Picks the micro-kernel table of the instruction set in force.
#include "micro.h"

#include "isa.h"

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

}  // namespace ddi
