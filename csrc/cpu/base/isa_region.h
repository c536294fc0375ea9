// Target regions: code between DDI_REGION_* and DDI_REGION_END is compiled for a newer instruction
// set than the file around it. Rules that keep newer instructions out of the baseline build: every
// #include stands before the region, everything inside sits in an anonymous namespace, and nothing
// inside calls an inline function or template of a header (the linker merges those by name, and
// the copy compiled for the newer machine may win). Intrinsics and builtins are fine. What several
// files of one instruction set share stands in a header that they include inside their regions,
// after all others (micro_<isa>_<part>.h): it includes nothing, and obeys the same rules.
#pragma once

// For helpers of a register tile: a call would send its accumulators through memory.
#define DDI_INLINE inline __attribute__((always_inline))

// clang-format off
#if defined(__clang__)
#define DDI_REGION_AVX2 \
  _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c\"))), apply_to = function)")
#define DDI_REGION_AVX512 \
  _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512dq,avx512vl,fma\"))), apply_to = function)")
#define DDI_REGION_AVX512_VNNI \
  _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512dq,avx512vl,fma,avx512vnni\"))), apply_to = function)")
#define DDI_REGION_AVX512_BF16 \
  _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512dq,avx512vl,fma,avx512bf16\"))), apply_to = function)")
#define DDI_REGION_AVX512_AMX \
  _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512dq,avx512vl,fma,amx-tile,amx-bf16,amx-int8\"))), apply_to = function)")
#define DDI_REGION_NEON \
  _Pragma("clang attribute push(__attribute__((target(\"neon\"))), apply_to = function)")
#define DDI_REGION_NEON_DOT \
  _Pragma("clang attribute push(__attribute__((target(\"arch=armv8.2-a+dotprod\"))), apply_to = function)")
#define DDI_REGION_NEON_BF16 \
  _Pragma("clang attribute push(__attribute__((target(\"arch=armv8.2-a+bf16\"))), apply_to = function)")
#define DDI_REGION_END _Pragma("clang attribute pop")
#define DDI_UNROLL _Pragma("clang loop unroll(full)")
#else
// GCC 12 warns about the deliberately undefined registers inside its own intrinsics (GCC bug 105593).
#define DDI_REGION_BEGIN_GCC                              \
  _Pragma("GCC push_options") _Pragma("GCC diagnostic push") \
  _Pragma("GCC diagnostic ignored \"-Wuninitialized\"")    \
  _Pragma("GCC diagnostic ignored \"-Wmaybe-uninitialized\"")
#define DDI_REGION_AVX2 DDI_REGION_BEGIN_GCC _Pragma("GCC target(\"avx2,fma,f16c,f16c\")")
#define DDI_REGION_AVX512 \
  DDI_REGION_BEGIN_GCC _Pragma("GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,fma\")")
#define DDI_REGION_AVX512_VNNI \
  DDI_REGION_BEGIN_GCC _Pragma("GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,fma,avx512vnni\")")
#define DDI_REGION_AVX512_BF16 \
  DDI_REGION_BEGIN_GCC _Pragma("GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,fma,avx512bf16\")")
#define DDI_REGION_AVX512_AMX \
  DDI_REGION_BEGIN_GCC _Pragma("GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,fma,amx-tile,amx-bf16,amx-int8\")")
#if defined(__aarch64__)
#define DDI_REGION_NEON DDI_REGION_BEGIN_GCC  // NEON is in the baseline
#else
#define DDI_REGION_NEON DDI_REGION_BEGIN_GCC _Pragma("GCC target(\"arch=armv7-a+simd\")")
#endif
// The architecture too: what GCC's arm_neon.h asks for.
#define DDI_REGION_NEON_DOT DDI_REGION_BEGIN_GCC _Pragma("GCC target(\"arch=armv8.2-a+dotprod\")")
#define DDI_REGION_NEON_BF16 DDI_REGION_BEGIN_GCC _Pragma("GCC target(\"arch=armv8.2-a+bf16\")")
#define DDI_REGION_END _Pragma("GCC diagnostic pop") _Pragma("GCC pop_options")
#define DDI_UNROLL _Pragma("GCC unroll 16")
#endif
// clang-format on
