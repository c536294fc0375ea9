// AMX on processors without it: there the instructions are illegal, and the handler of that signal
// does what Intel's manual says of each, then goes on behind it. So it is the compiled kernels
// themselves that are checked, operands and the compiler's order of memory accesses included.
// What the manual makes a fault ends the program. Left out: faults of memory in the middle of a
// tile, transactions.
#pragma once

#include <signal.h>
#include <ucontext.h>

#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace amx {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;  // of palette 1

struct Registers {
  bool configured;
  int rows[kTiles], row_bytes[kTiles];
  uint8_t tile[kTiles][kRows][kRowBytes];
};

inline thread_local Registers registers;
inline std::atomic<long> configurations, releases, products;

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "AMX: %s\n", what);
  std::abort();
}

inline void require_configured(std::initializer_list<int> tiles) {
  require(registers.configured, "no configuration");
  for (int t : tiles) require(t < kTiles && registers.rows[t] > 0, "a tile that is not configured");
}

inline void load_config(const uint8_t* from) {
  uint8_t config[64];
  std::memcpy(config, from, sizeof(config));
  require(config[0] <= 1, "an unknown palette");
  require(config[1] == 0, "a start row, which is not emulated");
  std::memset(&registers, 0, sizeof(registers));
  registers.configured = config[0] == 1;
  ++(registers.configured ? configurations : releases);
  if (!registers.configured) return;
  const auto zeros = [&](int first, int end) {
    for (int i = first; i < end; ++i) require(config[i] == 0, "a reserved byte is not zero");
  };
  zeros(2, 16);
  zeros(16 + 2 * kTiles, 48);
  zeros(48 + kTiles, 64);
  for (int t = 0; t < kTiles; ++t) {
    const int bytes = config[16 + 2 * t] + 256 * config[17 + 2 * t], rows = config[48 + t];
    require(bytes <= kRowBytes && rows <= kRows, "a tile larger than the palette's");
    require((bytes == 0) == (rows == 0), "a tile of rows without bytes or the reverse");
    registers.row_bytes[t] = bytes;
    registers.rows[t] = rows;
  }
}

inline void release() {
  std::memset(&registers, 0, sizeof(registers));
  ++releases;
}

inline void zero(int t) {
  require_configured({t});
  std::memset(registers.tile[t], 0, sizeof(registers.tile[t]));
}

inline void load(int t, const uint8_t* from, int64_t stride) {
  zero(t);
  for (int r = 0; r < registers.rows[t]; ++r) {
    std::memcpy(registers.tile[t][r], from + r * stride, registers.row_bytes[t]);
  }
}

inline void store(int t, uint8_t* to, int64_t stride) {
  require_configured({t});
  for (int r = 0; r < registers.rows[t]; ++r) {
    std::memcpy(to + r * stride, registers.tile[t][r], registers.row_bytes[t]);
  }
}

// sum[m][n] += row_product(a[m], b, n), over cells of four bytes.
template <class Word, class RowProduct>
void multiply(int sum, int a, int b, const RowProduct& row_product) {
  require_configured({sum, a, b});
  const Registers& r = registers;
  require(sum != a && a != b && sum != b, "two operands are one tile");
  require(r.row_bytes[sum] % 4 == 0 && r.row_bytes[a] % 4 == 0 && r.row_bytes[b] % 4 == 0,
          "a row of broken cells");
  require(r.rows[sum] == r.rows[a] && r.row_bytes[sum] == r.row_bytes[b] &&
              r.row_bytes[a] / 4 == r.rows[b],
          "tiles that do not fit each other");
  for (int m = 0; m < r.rows[sum]; ++m) {
    for (int n = 0; n < r.row_bytes[sum] / 4; ++n) {
      Word word;
      uint8_t* at = registers.tile[sum][m] + 4 * n;
      std::memcpy(&word, at, 4);
      word = row_product(word, r.tile[a][m], b, n);
      std::memcpy(at, &word, 4);
    }
  }
  ++products;
}

// Of arguments and results: denormals are zeros.
inline float flush(float v) { return std::fabs(v) < FLT_MIN ? std::copysign(0.0f, v) : v; }

inline float bf16_at(const uint8_t* from) {
  const uint32_t bits = static_cast<uint32_t>(from[0] | from[1] << 8) << 16;
  float v;
  std::memcpy(&v, &bits, sizeof(v));
  return flush(v);
}

// Two sums from zero, of the first channels and of the second, each rounded once a product.
__attribute__((target("fma"))) inline float bf16_products(float sum, const uint8_t* a, int b,
                                                          int n) {
  float part[2] = {0, 0};
  for (int k = 0; k < registers.rows[b]; ++k) {
    for (int i = 0; i < 2; ++i) {
      const float x = bf16_at(a + 4 * k + 2 * i);
      const float w = bf16_at(registers.tile[b][k] + 4 * n + 2 * i);
      part[i] = flush(__builtin_fmaf(x, w, part[i]));
    }
  }
  return flush(flush(sum) + flush(part[0] + part[1]));
}

// Unsigned times signed, without saturation.
inline uint32_t byte_products(uint32_t sum, const uint8_t* a, int b, int n) {
  for (int k = 0; k < registers.rows[b]; ++k) {
    const uint8_t* w = registers.tile[b][k] + 4 * n;
    for (int i = 0; i < 4; ++i) sum += a[4 * k + i] * static_cast<int8_t>(w[i]);
  }
  return sum;
}

// An instruction of map 0F38 under the VEX prefix of three bytes; numbers as general registers or
// tiles have them.
struct Instruction {
  int prefix, opcode, reg, rm, vvvv;  // prefix: none, 66, F3, F2
  bool memory, has_sib;
  uint8_t* base;   // with the displacement
  int64_t stride;  // of the index
  int length;
};

inline int64_t general_register(const ucontext_t& context, int number) {
  constexpr int kOrder[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                            REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return context.uc_mcontext.gregs[kOrder[number]];
}

inline void decode_address(const ucontext_t& context, const uint8_t* code, Instruction& in) {
  const int mod = code[4] >> 6, low = code[4] & 7;
  const int index_high = ~code[1] >> 3 & 8, base_high = ~code[1] >> 2 & 8;
  in.has_sib = low == 4;
  int base = low | base_high;
  if (in.has_sib) {
    const int sib = code[in.length++], index = (sib >> 3 & 7) | index_high;
    base = (sib & 7) | base_high;
    in.stride = index == 4 ? 0 : general_register(context, index) * (1 << (sib >> 6));
  }
  const bool no_base = mod == 0 && (base & 7) == 5;
  int64_t address = no_base ? 0 : general_register(context, base);
  if (mod == 1) address += static_cast<int8_t>(code[in.length++]);
  if (mod == 2 || no_base) {
    int32_t displacement;
    std::memcpy(&displacement, code + in.length, 4);
    in.length += 4;
    address += displacement;
  }
  if (no_base && !in.has_sib) address += reinterpret_cast<int64_t>(code) + in.length;
  in.base = reinterpret_cast<uint8_t*>(address);
}

inline Instruction decode(const ucontext_t& context, const uint8_t* code) {
  require(code[0] == 0xc4 && (code[1] & 0x1f) == 2, "an illegal instruction of another kind");
  require((code[2] & 0x84) == 0, "W or L is set");
  Instruction in = {};
  in.prefix = code[2] & 3;
  in.vvvv = ~code[2] >> 3 & 15;
  in.opcode = code[3];
  in.reg = (code[4] >> 3 & 7) | (~code[1] >> 4 & 8);
  in.rm = (code[4] & 7) | (~code[1] >> 2 & 8);
  in.memory = code[4] >> 6 != 3;
  in.length = 5;
  if (in.memory) decode_address(context, code, in);
  return in;
}

inline void execute(const Instruction& in) {
  enum { kNone, k66, kF3, kF2 };
  const bool moves = in.opcode == 0x4b && in.memory && in.has_sib && in.vvvv == 0;
  const bool sets_up = in.opcode == 0x49 && in.vvvv == 0;
  if (moves && (in.prefix == kF2 || in.prefix == k66)) return load(in.reg, in.base, in.stride);
  if (moves && in.prefix == kF3) return store(in.reg, in.base, in.stride);
  if (sets_up && in.prefix == kNone && in.memory && in.reg == 0) {
    return load_config(in.base + in.stride);
  }
  if (sets_up && in.prefix == kNone && !in.memory && in.reg == 0 && in.rm == 0) return release();
  if (sets_up && in.prefix == kF2 && !in.memory && in.rm == 0) return zero(in.reg);
  if (in.opcode == 0x5c && in.prefix == kF3 && !in.memory) {
    return multiply<float>(in.reg, in.rm, in.vvvv, bf16_products);
  }
  if (in.opcode == 0x5e && in.prefix == k66 && !in.memory) {
    return multiply<uint32_t>(in.reg, in.rm, in.vvvv, byte_products);
  }
  require(false, "an instruction that is not emulated");
}

inline void on_illegal_instruction(int, siginfo_t*, void* state) {
  ucontext_t& context = *static_cast<ucontext_t*>(state);
  greg_t& next = context.uc_mcontext.gregs[REG_RIP];
  const Instruction in = decode(context, reinterpret_cast<const uint8_t*>(next));
  execute(in);
  next += in.length;
}

inline void emulate() {
  struct sigaction action = {};
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
}

}  // namespace amx
