// Detection by hand instead of __builtin_cpu_supports: compilers disagree on the strings it takes,
// and XGETBV must be asked as well, since a kernel or hypervisor may not save the wide registers.
// ARM processors answer only to the operating system, which passes it on (getauxval).
#include "isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(DDI_NEON) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace ddi {
namespace {

#if defined(__x86_64__)
constexpr const char* kNames[] = {"scalar",      "avx2",        "avx512",
                                  "avx512_vnni", "avx512_bf16", "avx512_amx"};
#elif defined(__aarch64__)
constexpr const char* kNames[] = {"scalar", "neon", "neon_dot", "neon_bf16"};
#elif defined(DDI_NEON)
constexpr const char* kNames[] = {"scalar", "neon"};
#else
constexpr const char* kNames[] = {"scalar"};
#endif
constexpr int kLevels = static_cast<int>(std::size(kNames));

#if defined(__x86_64__)
bool bit(unsigned word, int position) { return (word >> position) & 1u; }

// Register states that the operating system saves on a context switch (XCR0). Written as bytes
// because the mnemonic and the intrinsic both need a target newer than the baseline.
unsigned saved_states() {
  unsigned low = 0, high = 0;
  __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// Linux lends the tile registers to a process that asks, and then to all its threads: they make
// the state that it saves larger by eight KiB.
bool tiles_are_lent() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of asm/prctl.h since Linux 5.16
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Isa detect() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::kScalar;
  const bool fma = bit(c, 12), osxsave = bit(c, 27), avx = bit(c, 28), f16c = bit(c, 29);
  if (!osxsave || !avx || !fma || !f16c) return Isa::kScalar;
  constexpr unsigned kYmmStates = 0x06, kZmmStates = 0xe6, kTileStates = 0x60000;
  const unsigned states = saved_states();
  if ((states & kYmmStates) != kYmmStates) return Isa::kScalar;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !bit(b, 5)) return Isa::kScalar;
  const bool avx512 = bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);    // F, DQ, BW, VL
  const bool vnni = bit(c, 11), amx = bit(d, 22) && bit(d, 24) && bit(d, 25);  // BF16, TILE, INT8
  if (!avx512 || (states & kZmmStates) != kZmmStates) return Isa::kAvx2;
  if (!vnni) return Isa::kAvx512;
  const bool bf16 = __get_cpuid_count(7, 1, &a, &b, &c, &d) && bit(a, 5);
  if (!bf16) return Isa::kAvx512Vnni;
  const bool tiles = amx && (states & kTileStates) == kTileStates && tiles_are_lent();
  return tiles ? Isa::kAvx512Amx : Isa::kAvx512Bf16;
}
#elif defined(__aarch64__)
Isa detect() {
#if defined(__linux__) && defined(DDI_NEON_DOT)
  constexpr unsigned long kDot = 1ul << 20, kBf16 = 1ul << 14;  // of asm/hwcap.h
  if ((getauxval(AT_HWCAP) & kDot) == 0) return Isa::kNeon;
  return (getauxval(AT_HWCAP2) & kBf16) != 0 ? Isa::kNeonBf16 : Isa::kNeonDot;
#else
  return Isa::kNeon;  // part of the architecture
#endif
}
#elif defined(DDI_NEON) && defined(__linux__)
Isa detect() {
  constexpr unsigned long kNeon = 1ul << 12;  // of asm/hwcap.h
  return (getauxval(AT_HWCAP) & kNeon) != 0 ? Isa::kNeon : Isa::kScalar;
}
#else
Isa detect() { return Isa::kScalar; }
#endif

const char* isa_env() {
  const char* value = std::getenv("DDI_CPU_ISA");
  return value != nullptr && *value != '\0' ? value : nullptr;
}

Isa default_isa() {
  Isa wanted = kHighestDefault;
  if (const char* value = isa_env()) parse_isa(value, &wanted);
  return std::min(wanted, detected_isa());
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{default_isa()};
  return isa;
}

}  // namespace

Isa detected_isa() {
  static const Isa isa = detect();
  return isa;
}

Isa current_isa() { return chosen().load(std::memory_order_relaxed); }

void override_isa(Isa isa) { chosen().store(isa, std::memory_order_relaxed); }

void reset_isa() { override_isa(default_isa()); }

const char* rejected_isa_env() {
  Isa unused;
  const char* value = isa_env();
  return value != nullptr && !parse_isa(value, &unused) ? value : nullptr;
}

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

const char* isa_names() {
  static const std::string names = [] {
    std::string list = kNames[0];
    for (int i = 1; i < kLevels; ++i) {
      list += i + 1 < kLevels ? ", " : " or ";
      list += kNames[i];
    }
    return list;
  }();
  return names.c_str();
}

bool parse_isa(const char* name, Isa* isa) {
  for (int i = 0; i < kLevels; ++i) {
    if (std::strcmp(name, kNames[i]) == 0) {
      *isa = static_cast<Isa>(i);
      return true;
    }
  }
  return false;
}

}  // namespace ddi
