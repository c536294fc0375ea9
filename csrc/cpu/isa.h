// Which instruction set the CPU kernels use: detected once by CPUID and XGETBV (the operating
// system must save the wide registers too), capped by the environment variable DDI_CPU_ISA, and
// overridable at run time so that a test can walk through every level on one machine.
#pragma once

namespace ddi {

// Ordered: a machine that has a level has all levels below it.
// kAvx512 is F, BW, DQ and VL; kAvx512Vnni adds dot products of bytes, kAvx512Bf16 of bfloat16,
// kAvx512Amx the tile registers, AMX-TILE, AMX-BF16 and AMX-INT8.
enum class Isa {
  kScalar = 0,
  kAvx2 = 1,
  kAvx512 = 2,
  kAvx512Vnni = 3,
  kAvx512Bf16 = 4,
  kAvx512Amx = 5
};

// The highest level taken by itself: those above have not been run on a processor that has them.
constexpr Isa kHighestDefault = Isa::kAvx512Bf16;

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

// "scalar, avx2, ...", for messages.
const char* isa_names();

// False, leaving `isa` alone, if `name` is none of isa_names().
bool parse_isa(const char* name, Isa* isa);

}  // namespace ddi
