// Runs CUDA kernels on the CPU, a block at a time: threads are fibers that give way where a kernel
// makes them wait for each other, and go on in an order drawn anew each time. So a missing wait, a
// wrong fragment or address shows as a wrong result; bank conflicts of matrix loads are counted.
// Stands in for csrc/cuda/warp.cuh under DDI_EMULATE. Not covered: other warps' writes seen late.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "half_formats.h"

#define __device__
#define __global__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx;
struct uint4 {
  uint32_t x, y, z, w;
};
struct float4 {
  float x, y, z, w;
};
using std::min;

inline int atomicAdd(int* p, int v) {
  *p += v;
  return *p - v;
}
inline unsigned long long atomicOr(unsigned long long* p, unsigned long long v) {
  *p |= v;
  return *p & ~v;
}

namespace emulate {

enum class State { kReady, kAtBlock, kAtWarp, kDone };

// 16 bytes under way to shared memory; zeros come from nowhere.
struct Piece {
  void* to;
  const void* from;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state = State::kReady;
  std::function<void(Fiber**)> together;  // what its warp does when all lanes are here
  const void* row = nullptr;              // arguments of warp instructions
  uint32_t* words = nullptr;
  float* sums = nullptr;
  const uint32_t* a = nullptr;
  uint32_t b[2] = {};
  bool bit = false;                            // what it votes
  unsigned votes = 0;                          // its warp's
  std::vector<std::vector<Piece>> batches{1};  // copies started, the last one not yet committed
};

struct Copy {
  void* to;
  const void* from;
  uint32_t bytes;
  uint64_t* barrier;
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline unsigned running;
inline std::vector<unsigned char> shared;
inline std::vector<Copy> copies;
inline std::mt19937 order;
inline long conflicts;
inline std::function<void()> kernel;

[[noreturn]] inline void fail(const char* what) {
  std::printf("emulate: %s (thread %u)\n", what, running);
  std::fflush(stdout);
  std::_Exit(1);  // destructors would free the stack that this runs on
}

inline void give_way(State state) {
  fibers[running].state = state;
  swapcontext(&fibers[running].context, &scheduler);
}

inline void begin() {
  kernel();
  fibers[running].state = State::kDone;
}

inline unsigned char* aligned_shared() {
  return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(shared.data()) + 127) &
                                          ~uintptr_t{127});
}

// All lanes of a warp come here with the same instruction.
inline void with_warp(const std::function<void(Fiber**)>& instruction) {
  fibers[running].together = instruction;
  give_way(State::kAtWarp);
}

inline void run_warps() {
  for (size_t first = 0; first < fibers.size(); first += 32) {
    Fiber* lanes[32];
    bool all = true;
    for (unsigned i = 0; i < 32; ++i) {
      lanes[i] = &fibers[first + i];
      all = all && lanes[i]->state == State::kAtWarp;
    }
    if (!all) continue;
    lanes[0]->together(lanes);
    for (Fiber* lane : lanes) lane->state = State::kReady;
  }
}

// Runs one block of `threads` threads; `shared_bytes` hold junk at first.
inline void run_block(unsigned threads) {
  fibers = std::vector<Fiber>(threads);
  std::fill(shared.begin(), shared.end(), 0xff);
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    constexpr size_t kStack = 1 << 16;
    fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, begin, 0);
  }
  std::vector<unsigned> ready;
  for (;;) {
    ready.clear();
    for (unsigned t = 0; t < threads; ++t)
      if (fibers[t].state == State::kReady) ready.push_back(t);
    if (ready.empty()) {
      const auto at = [](State s) {
        return std::count_if(fibers.begin(), fibers.end(), [s](Fiber& f) { return f.state == s; });
      };
      if (at(State::kDone) == threads) {
        for (const Fiber& fiber : fibers)
          for (const auto& batch : fiber.batches)
            if (!batch.empty()) fail("pieces were copied and never waited for");
        return;
      }
      if (at(State::kAtBlock) != threads) fail("threads wait for others that never come");
      for (Fiber& fiber : fibers) fiber.state = State::kReady;
      continue;
    }
    std::shuffle(ready.begin(), ready.end(), order);
    for (unsigned t : ready) {
      running = t;
      threadIdx.x = t;
      swapcontext(&scheduler, &fibers[t].context);
    }
    run_warps();
  }
}

inline void launch(unsigned blocks, unsigned threads, size_t shared_bytes, unsigned seed,
                   const std::function<void()>& body) {
  kernel = body;
  order.seed(seed);
  shared.assign(shared_bytes + 128, 0xff);
  for (unsigned b = 0; b < blocks; ++b) {
    blockIdx.x = b;
    run_block(threads);
    if (!copies.empty()) fail("a copy was started and never waited for");
  }
}

inline void load_together(Fiber** lanes) {
  for (unsigned i = 0; i < 4; ++i) {
    std::set<uintptr_t> banks;
    for (unsigned r = 0; r < 8; ++r)
      banks.insert(reinterpret_cast<uintptr_t>(lanes[8 * i + r]->row) / 16 % 8);
    conflicts += 8 - static_cast<long>(banks.size());
    for (unsigned lane = 0; lane < 32; ++lane) {
      const char* row = static_cast<const char*>(lanes[8 * i + lane / 4]->row);
      std::memcpy(lanes[lane]->words + i, row + lane % 4 * 4, 4);
    }
  }
}

inline void vote_together(Fiber** lanes) {
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) votes |= unsigned{lanes[lane]->bit} << lane;
  for (unsigned lane = 0; lane < 32; ++lane) lanes[lane]->votes = votes;
}

using Widen = float (*)(uint32_t);

template <Widen widen>
float half_of(uint32_t word, unsigned which) {
  return widen(which == 0 ? word & 0xffff : word >> 16);
}

template <Widen widen>
void multiply_together(Fiber** lanes) {
  float a[16][16], b[16][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned g = lane / 4, t = lane % 4 * 2;
    for (unsigned w = 0; w < 4; ++w)
      for (unsigned i = 0; i < 2; ++i)
        a[g + w % 2 * 8][t + w / 2 * 8 + i] = half_of<widen>(lanes[lane]->a[w], i);
    for (unsigned w = 0; w < 2; ++w)
      for (unsigned i = 0; i < 2; ++i) b[t + w * 8 + i][g] = half_of<widen>(lanes[lane]->b[w], i);
  }
  for (unsigned lane = 0; lane < 32; ++lane)
    for (unsigned w = 0; w < 4; ++w) {
      const unsigned row = lane / 4 + w / 2 * 8, col = lane % 4 * 2 + w % 2;
      for (unsigned k = 0; k < 16; ++k) lanes[lane]->sums[w] += a[row][k] * b[k][col];
    }
}

}  // namespace emulate

namespace ddi {

inline unsigned char* shared_memory() { return emulate::aligned_shared(); }

inline void sync_threads() { emulate::give_way(emulate::State::kAtBlock); }

inline void load_matrices(uint32_t (&r)[4], const void* row) {
  emulate::Fiber& me = emulate::fibers[emulate::running];
  me.row = row;
  me.words = r;
  emulate::with_warp(emulate::load_together);
}

template <emulate::Widen widen>
void multiply_as(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulate::Fiber& me = emulate::fibers[emulate::running];
  me.sums = acc;
  me.a = a;
  me.b[0] = b0, me.b[1] = b1;
  emulate::with_warp(emulate::multiply_together<widen>);
}

inline void multiply(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_as<emulate::from_bf16>(acc, a, b0, b1);
}

inline void multiply_f16(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_as<emulate::from_f16>(acc, a, b0, b1);
}

inline float from_f16(uint16_t bits) { return emulate::from_f16(bits); }

inline uint16_t to_f16(float value) { return static_cast<uint16_t>(emulate::to_f16(value)); }

inline unsigned vote_warp(bool bit) {
  emulate::Fiber& me = emulate::fibers[emulate::running];
  me.bit = bit;
  emulate::with_warp(emulate::vote_together);
  return me.votes;
}

inline int count_bits(unsigned bits) { return __builtin_popcount(bits); }

inline int count_threads(bool bit) {
  emulate::fibers[emulate::running].bit = bit;
  sync_threads();
  int count = 0;
  for (const emulate::Fiber& fiber : emulate::fibers) count += fiber.bit;
  sync_threads();  // nobody votes anew before all have counted
  return count;
}

inline uint32_t pack_bf16(float low, float high) {
  return emulate::to_bf16(low) | emulate::to_bf16(high) << 16;
}

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// A barrier counts the copies that it has seen end.
inline void init_barrier(uint64_t* barrier) { *barrier = 0; }

inline void finish_copy(const emulate::Copy& copy) {
  std::memcpy(copy.to, copy.from, copy.bytes);
  ++*copy.barrier;
}

// Ends at once or when somebody waits for it, as it may on a GPU; until then there is junk.
inline void start_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  if (bytes % 16 != 0 || reinterpret_cast<uintptr_t>(to) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(from) % 16 != 0)
    emulate::fail("a bulk copy is not of whole 16 bytes");
  for (const emulate::Copy& other : emulate::copies)
    if (other.barrier == barrier) emulate::fail("two copies on one barrier");
  std::memset(to, 0xff, bytes);
  const emulate::Copy copy{to, from, bytes, barrier};
  if (emulate::order() % 2 == 0) {
    emulate::copies.push_back(copy);
  } else {
    finish_copy(copy);
  }
}

inline void finish_piece(const emulate::Piece& piece) {
  if (piece.from != nullptr) {
    std::memcpy(piece.to, piece.from, 16);
  } else {
    std::memset(piece.to, 0, 16);
  }
}

// Ends at once or when its thread waits for it; until then there is junk.
inline void start_piece(void* to, const void* from, bool real) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 != 0)
    emulate::fail("a piece is not of 16 aligned bytes");
  std::memset(to, 0xff, 16);
  const emulate::Piece piece{to, real ? from : nullptr};
  if (emulate::order() % 2 == 0) {
    emulate::fibers[emulate::running].batches.back().push_back(piece);
  } else {
    finish_piece(piece);
  }
}

inline void commit_pieces() { emulate::fibers[emulate::running].batches.emplace_back(); }

template <int LEFT>
void wait_pieces() {
  auto& batches = emulate::fibers[emulate::running].batches;
  while (batches.size() > LEFT + 1) {
    for (const emulate::Piece& piece : batches.front()) finish_piece(piece);
    batches.erase(batches.begin());
  }
}

inline void wait_copy(uint64_t* barrier, uint32_t parity) {
  for (int turns = 0; (*barrier & 1) == parity; ++turns) {
    if (turns == 10000) emulate::fail("a copy is waited for that nobody starts");
    auto& copies = emulate::copies;
    const auto found = std::find_if(copies.begin(), copies.end(), [&](const emulate::Copy& copy) {
      return copy.barrier == barrier;
    });
    if (found == copies.end()) {
      emulate::give_way(emulate::State::kReady);
      continue;
    }
    const emulate::Copy copy = *found;
    copies.erase(found);
    finish_copy(copy);
  }
}

}  // namespace ddi
