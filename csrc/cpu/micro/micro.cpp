// Picks the micro-kernels of the instruction set in force.
#include "micro.h"

#include "base/isa.h"
#include "micro_depthwise.h"
#include "micro_elementwise.h"
#include "micro_gate.h"
#include "micro_winograd.h"

namespace ddi {

template <>
const Micro<double>& micro<double>() {
  return kScalarF64;
}

#if defined(__x86_64__)
namespace {

// A level without a table of its own has that of the level below.
template <class M>
const M& pick(const M& scalar, const M& avx2, const M& avx512, const M& vnni, const M& bf16,
              const M& amx) {
  switch (current_isa()) {
    case Isa::kAvx512Amx:
      return amx;
    case Isa::kAvx512Bf16:
      return bf16;
    case Isa::kAvx512Vnni:
      return vnni;
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx2:
      return avx2;
    case Isa::kScalar:
      break;
  }
  return scalar;
}

}  // namespace

template <>
const Micro<float>& micro<float>() {
  return pick(kScalarF32, kAvx2F32, kAvx512F32, kAvx512F32, kAvx512F32, kAvx512F32);
}

template <>
const Micro<half>& micro<half>() {
  return pick(kScalarF16, kAvx2F16, kAvx512F16, kAvx512F16, kAvx512F16, kAvx512F16);
}

template <>
const Micro<bf16>& micro<bf16>() {
  return pick(kScalarBf16, kAvx2Bf16, kAvx512Bf16, kAvx512Bf16, kAvx512DotBf16, kAvx512AmxBf16);
}

template <>
const Micro<int8_t>& micro<int8_t>() {
  return pick(kScalarInt8, kAvx2Int8, kAvx2Int8, kAvx512VnniInt8, kAvx512VnniInt8, kAvx512AmxInt8);
}

template <>
DepthwiseTileFn<float> depthwise_tile<float>() {
  return pick(kScalarDepthwiseF32, kAvx2DepthwiseF32, kAvx512DepthwiseF32, kAvx512DepthwiseF32,
              kAvx512DepthwiseF32, kAvx512DepthwiseF32);
}

template <>
const GateMicro<float>& gate_micro<float>() {
  return pick(kScalarGateF32, kAvx2GateF32, kAvx512GateF32, kAvx512GateF32, kAvx512GateF32,
              kAvx512GateF32);
}

template <>
const ElementwiseMicro<float>& elementwise_micro<float>() {
  return pick(kScalarElementwiseF32, kAvx2ElementwiseF32, kAvx512ElementwiseF32,
              kAvx512ElementwiseF32, kAvx512ElementwiseF32, kAvx512ElementwiseF32);
}

template <>
const ElementwiseMicro<bf16>& elementwise_micro<bf16>() {
  return pick(kScalarElementwiseBf16, kAvx2ElementwiseBf16, kAvx512ElementwiseBf16,
              kAvx512ElementwiseBf16, kAvx512ElementwiseBf16, kAvx512ElementwiseBf16);
}

const WinogradMicro& winograd_micro() {
  return pick(kScalarWinograd, kAvx2Winograd, kAvx512Winograd, kAvx512Winograd, kAvx512Winograd,
              kAvx512Winograd);
}
#elif defined(DDI_NEON)
namespace {

#if defined(__aarch64__)
constexpr const Micro<half>& kHalf = kNeonF16;
#else
constexpr const Micro<half>& kHalf = kScalarF16;
#endif
#if defined(DDI_NEON_DOT)
constexpr const Micro<int8_t>& kDotInt8 = kNeonDotInt8;
constexpr const Micro<bf16>& kDotBf16 = kNeonDotBf16;
#else
constexpr const Micro<int8_t>& kDotInt8 = kNeonInt8;
constexpr const Micro<bf16>& kDotBf16 = kNeonBf16;
#endif

// By level; 32-bit ARM has only the first two.
template <class M>
const M& pick(const M& scalar, const M& neon, const M& dot, const M& bf16) {
  const M* const tables[] = {&scalar, &neon, &dot, &bf16};
  return *tables[static_cast<int>(current_isa())];
}

}  // namespace

template <>
const Micro<float>& micro<float>() {
  return pick(kScalarF32, kNeonF32, kNeonF32, kNeonF32);
}

template <>
const Micro<half>& micro<half>() {
  return pick(kScalarF16, kHalf, kHalf, kHalf);
}

template <>
const Micro<bf16>& micro<bf16>() {
  return pick(kScalarBf16, kNeonBf16, kNeonBf16, kDotBf16);
}

template <>
const Micro<int8_t>& micro<int8_t>() {
  return pick(kScalarInt8, kNeonInt8, kDotInt8, kDotInt8);
}

template <>
DepthwiseTileFn<float> depthwise_tile<float>() {
  return pick(kScalarDepthwiseF32, kNeonDepthwiseF32, kNeonDepthwiseF32, kNeonDepthwiseF32);
}

template <>
const GateMicro<float>& gate_micro<float>() {
  return pick(kScalarGateF32, kNeonGateF32, kNeonGateF32, kNeonGateF32);
}

template <>
const ElementwiseMicro<float>& elementwise_micro<float>() {
  return pick(kScalarElementwiseF32, kNeonElementwiseF32, kNeonElementwiseF32, kNeonElementwiseF32);
}

template <>
const ElementwiseMicro<bf16>& elementwise_micro<bf16>() {
  return pick(kScalarElementwiseBf16, kNeonElementwiseBf16, kNeonElementwiseBf16,
              kNeonElementwiseBf16);
}

const WinogradMicro& winograd_micro() {
  return pick(kScalarWinograd, kNeonWinograd, kNeonWinograd, kNeonWinograd);
}
#else
template <>
const Micro<float>& micro<float>() {
  return kScalarF32;
}

template <>
const Micro<half>& micro<half>() {
  return kScalarF16;
}

template <>
const Micro<bf16>& micro<bf16>() {
  return kScalarBf16;
}

template <>
const Micro<int8_t>& micro<int8_t>() {
  return kScalarInt8;
}

template <>
DepthwiseTileFn<float> depthwise_tile<float>() {
  return kScalarDepthwiseF32;
}

template <>
const GateMicro<float>& gate_micro<float>() {
  return kScalarGateF32;
}

template <>
const ElementwiseMicro<float>& elementwise_micro<float>() {
  return kScalarElementwiseF32;
}

template <>
const ElementwiseMicro<bf16>& elementwise_micro<bf16>() {
  return kScalarElementwiseBf16;
}

const WinogradMicro& winograd_micro() { return kScalarWinograd; }
#endif

template <>
DepthwiseTileFn<double> depthwise_tile<double>() {
  return kScalarDepthwiseF64;
}

template <>
const GateMicro<double>& gate_micro<double>() {
  return kScalarGateF64;
}

}  // namespace ddi
