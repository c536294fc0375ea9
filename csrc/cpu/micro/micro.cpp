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
  return pick(kScalarInt8, kAvx2Int8, kAvx2Int8, kAvx512Int8, kAvx512Int8, kAvx512AmxInt8);
}

template <>
DepthwiseTileFn<float> depthwise_tile<float>() {
  return pick(kDepthwiseScalarF32, kDepthwiseAvx2F32, kDepthwiseAvx512F32, kDepthwiseAvx512F32,
              kDepthwiseAvx512F32, kDepthwiseAvx512F32);
}

template <>
const GateMicro<float>& gate_micro<float>() {
  return pick(kGateScalarF32, kGateAvx2F32, kGateAvx512F32, kGateAvx512F32, kGateAvx512F32,
              kGateAvx512F32);
}

template <>
const ElementwiseMicro<float>& elementwise_micro<float>() {
  return pick(kElementwiseScalarF32, kElementwiseAvx2F32, kElementwiseAvx512F32,
              kElementwiseAvx512F32, kElementwiseAvx512F32, kElementwiseAvx512F32);
}

template <>
const ElementwiseMicro<bf16>& elementwise_micro<bf16>() {
  return pick(kElementwiseScalarBf16, kElementwiseAvx2Bf16, kElementwiseAvx512Bf16,
              kElementwiseAvx512Bf16, kElementwiseAvx512Bf16, kElementwiseAvx512Bf16);
}

const WinogradMicro& winograd_micro() {
  return pick(kWinogradScalar, kWinogradAvx2, kWinogradAvx512, kWinogradAvx512, kWinogradAvx512,
              kWinogradAvx512);
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
  return pick(kDepthwiseScalarF32, kDepthwiseNeonF32, kDepthwiseNeonF32, kDepthwiseNeonF32);
}

template <>
const GateMicro<float>& gate_micro<float>() {
  return pick(kGateScalarF32, kGateNeonF32, kGateNeonF32, kGateNeonF32);
}

template <>
const ElementwiseMicro<float>& elementwise_micro<float>() {
  return pick(kElementwiseScalarF32, kElementwiseNeonF32, kElementwiseNeonF32, kElementwiseNeonF32);
}

template <>
const ElementwiseMicro<bf16>& elementwise_micro<bf16>() {
  return pick(kElementwiseScalarBf16, kElementwiseNeonBf16, kElementwiseNeonBf16,
              kElementwiseNeonBf16);
}

const WinogradMicro& winograd_micro() {
  return pick(kWinogradScalar, kWinogradNeon, kWinogradNeon, kWinogradNeon);
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
  return kDepthwiseScalarF32;
}

template <>
const GateMicro<float>& gate_micro<float>() {
  return kGateScalarF32;
}

template <>
const ElementwiseMicro<float>& elementwise_micro<float>() {
  return kElementwiseScalarF32;
}

template <>
const ElementwiseMicro<bf16>& elementwise_micro<bf16>() {
  return kElementwiseScalarBf16;
}

const WinogradMicro& winograd_micro() { return kWinogradScalar; }
#endif

template <>
DepthwiseTileFn<double> depthwise_tile<double>() {
  return kDepthwiseScalarF64;
}

template <>
const GateMicro<double>& gate_micro<double>() {
  return kGateScalarF64;
}

}  // namespace ddi
