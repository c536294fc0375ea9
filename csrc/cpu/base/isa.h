// Which instruction set the CPU kernels use: detected once (by CPUID and XGETBV, as the operating
// system must save the wide registers too; on ARM by what the kernel says of the processor), capped
// by the environment variable DDI_CPU_ISA, and overridable at run time so that a test can walk
// through every level on one machine.
#pragma once

// Whether NEON kernels are built. On 32-bit ARM GCC needs a target region only, older clang's
// arm_neon.h that all of the build has NEON.
#if defined(__aarch64__) || (defined(__ARM_FP) && (defined(__ARM_NEON) || !defined(__clang__)))
#define DDI_NEON
#endif
// Before 16, clang's arm_neon.h had dot products only if all of the build has them.
#if defined(__aarch64__) && (!defined(__clang__) || __clang_major__ >= 16)
#define DDI_NEON_DOT
#endif

namespace ddi {

// Those of this architecture, ordered: a machine that has a level has all levels below it.
// kAvx512 is F, BW, DQ and VL; kAvx512Vnni adds dot products of bytes, kAvx512Bf16 of bfloat16,
// kAvx512Amx the tile registers, AMX-TILE, AMX-BF16 and AMX-INT8. kNeonDot adds dot products of
// bytes (FEAT_DotProd), kNeonBf16 of bfloat16 (FEAT_BF16), both on 64-bit ARM only.
// kHighestDefault is the highest level taken by itself: those above have not been run on a
// processor that has them.
#if defined(__x86_64__)
enum class Isa {
  kScalar = 0,
  kAvx2 = 1,
  kAvx512 = 2,
  kAvx512Vnni = 3,
  kAvx512Bf16 = 4,
  kAvx512Amx = 5
};
constexpr Isa kHighestDefault = Isa::kAvx512Bf16;
#elif defined(__aarch64__)
enum class Isa { kScalar = 0, kNeon = 1, kNeonDot = 2, kNeonBf16 = 3 };
constexpr Isa kHighestDefault = Isa::kNeonBf16;
#elif defined(DDI_NEON)
enum class Isa { kScalar = 0, kNeon = 1 };
constexpr Isa kHighestDefault = Isa::kNeon;
#else
enum class Isa { kScalar = 0 };
constexpr Isa kHighestDefault = Isa::kScalar;
#endif

// What processor and operating system support.
Isa detected_isa();

// The level in force: the override, else what DDI_CPU_ISA names or kHighestDefault, capped by
// detected_isa().
Isa current_isa();

// Forces a level. The caller has checked that it is at most detected_isa().
void override_isa(Isa isa);

// Drops the override and reads DDI_CPU_ISA again.
void reset_isa();

// The value of DDI_CPU_ISA if it names no level (it is then ignored), else nullptr.
const char* rejected_isa_env();

const char* isa_name(Isa isa);

// "scalar, avx2, ... or ...", for messages.
const char* isa_names();

// False, leaving `isa` alone, if `name` is none of isa_names().
bool parse_isa(const char* name, Isa* isa);

}  // namespace ddi
