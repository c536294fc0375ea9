// A stage of a CIFAR ResNet, gates included, in one launch: a block of threads keeps one sample in
// shared memory and walks all residual blocks of the stage on it. The image is [W + 2, W + 2, C]
// bfloat16 with a border of zeros; weights come a convolution at a time, [tap, out, in], copied in
// bulk while the one before is computed. A skipped block costs its gates and a branch: no launch,
// no list, no host. A stage may begin with its entry block, which halves the map and doubles the
// width: its input lies where the stage's image will be. Rows of 16 bytes are swizzled so that
// neither reading nor writing them meets a bank twice (`element` below; the tests prove it).
#pragma once

#include "resident_gates.cuh"

namespace ddi {

struct StageData {
  // [samples, W, W, C], of an entry block [samples, 2 W, 2 W, C / 2]; bfloat16 as all 16-bit words
  const uint16_t* x;
  const uint16_t* weights;  // [blocks, 2, 9, C, C], rows swizzled by `element`
  const float* biases;      // [blocks, 2, C]
  // The entry block's, or null: [10, C, C / 2], the last for its shortcut, [9, C, C], [2, C].
  const uint16_t *entry1, *entry2;
  const float* entry_biases;
  const float *h, *c;  // [samples, hidden]
  uint16_t* y;         // [samples, W, W, C]
  float *h_next, *c_next;
  uint8_t *keep, *open;  // [samples, blocks], [samples, blocks, groups], entry block included
  int* queue;            // one int, 0 at first
  int samples, blocks;
};

// Shapes of a stage: WARPS_M x WARPS_N warps over pixels and output channels.
template <int C_, int W_, int WARPS_M, int WARPS_N>
struct Stage : Image<C_, W_> {
  using Entry = SortedImage<C_ / 2, 2 * W_>;
  static constexpr int kWarpsM = WARPS_M, kImage = Stage::kElements, kFilter = 9 * C_ * C_;
  static constexpr int kRows = W_ * W_ / 16 / WARPS_M, kCols = C_ / 8 / WARPS_N;  // tiles of a warp
  static constexpr int kEntry = Entry::kElements > kImage ? Entry::kElements : kImage;
  static_assert(32 * WARPS_M * WARPS_N == kStageThreads && kRows >= 1 && kCols % 2 == 0, "");

  static __device__ __forceinline__ int first_row() {
    return (threadIdx.x >> 5) % kWarpsM * kRows * 16;
  }
  static __device__ __forceinline__ int first_col() {
    return (threadIdx.x >> 5) / kWarpsM * kCols * 8;
  }
};

template <class S, bool ENTRY>
constexpr int stage_shared_bytes() {
  return 2 * (S::kImage + (ENTRY ? S::kEntry : S::kImage) + 2 * S::kFilter) +
         static_cast<int>(sizeof(StageScratch));
}

template <class S>
struct Sums {
  float of[S::kRows][S::kCols][4] = {};
};

// sums += one tap of a convolution of In, at `shift` from the windows; w: [C, In::C]. Closed
// channels, a bit each, are left out: of the input 16 at a time, of the output 8.
template <class S, class In>
__device__ __forceinline__ void add_tap(Sums<S>& sums, const uint16_t* in,
                                        const int (&window)[S::kRows], int shift, const uint16_t* w,
                                        uint64_t in_open, uint64_t out_open) {
  const int lane = threadIdx.x & 31, first_col = S::first_col();
#pragma unroll
  for (int k = 0; k < In::C / 16; ++k) {
    if (((in_open >> (k * 16)) & 0xffff) == 0) continue;  // the same for all threads
    uint32_t b[S::kCols][2];
#pragma unroll
    for (int j = 0; j < S::kCols; j += 2) {
      const int co = first_col + j * 8 + (lane & 7) + (lane >> 4) * 8;
      uint32_t r[4];
      load_matrices(r, w + element<In::C>(co, k * 2 + ((lane >> 3) & 1)));
      b[j][0] = r[0], b[j][1] = r[1], b[j + 1][0] = r[2], b[j + 1][1] = r[3];
    }
#pragma unroll
    for (int i = 0; i < S::kRows; ++i) {
      uint32_t a[4];
      load_matrices(a, in + element<In::C>(window[i] + shift, k * 2 + (lane >> 4)));
#pragma unroll
      for (int j = 0; j < S::kCols; ++j) {
        // Uniform within a warp, whose columns these are.
        if (((out_open >> (first_col + j * 8)) & 0xff) != 0)
          multiply(sums.of[i][j], a, b[j][0], b[j][1]);
      }
    }
  }
}

template <class S, class In>
__device__ __forceinline__ void find_windows(int (&window)[S::kRows]) {
#pragma unroll
  for (int i = 0; i < S::kRows; ++i)
    window[i] = In::window(S::first_row() + i * 16 + (threadIdx.x & 15));
}

template <class S, class In>
__device__ __forceinline__ void add_taps(Sums<S>& sums, const uint16_t* in, const uint16_t* w,
                                         uint64_t in_open, uint64_t out_open) {
  int window[S::kRows];
  find_windows<S, In>(window);
#pragma unroll(S::C == 16 ? 9 : 3)
  for (int tap = 0; tap < 9; ++tap)
    add_tap<S, In>(sums, in, window, In::shift(tap), w + tap * S::C * In::C, in_open, out_open);
}

// out = relu(sums + bias), zero in closed channels; or, ADD, out = relu(sums + bias + out).
template <class S, bool ADD>
__device__ __forceinline__ void store(const Sums<S>& sums, uint16_t* out, const float* bias,
                                      uint64_t opened) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < S::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < S::kCols; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int p = S::pixel(S::first_row() + i * 16 + (lane >> 2) + half * 8);
        const int c = S::first_col() + j * 8 + (lane & 3) * 2;
        uint32_t* at = reinterpret_cast<uint32_t*>(out + element<S::C>(p, c / 8) + (c & 7));
        float low = sums.of[i][j][half * 2] + bias[c];
        float high = sums.of[i][j][half * 2 + 1] + bias[c + 1];
        if (ADD) {
          low += as_float(*at << 16), high += as_float(*at & 0xffff0000u);
        }
        // By comparison, which NaN passes.
        low = low < 0.f ? 0.f : low, high = high < 0.f ? 0.f : high;
        low = (opened >> c) & 1 ? low : 0.f, high = (opened >> (c + 1)) & 1 ? high : 0.f;
        *at = pack_bf16(low, high);
      }
    }
  }
}

// The two buffers of weights: convolution `number` of the stage comes into buffer `slot`.
template <class S>
struct Weights {
  uint16_t* buffer;
  uint64_t* barrier;
  const uint16_t* source;
  uint32_t parity = 0;  // a bit for each buffer

  __device__ __forceinline__ uint16_t* in(int slot) { return buffer + slot * S::kFilter; }

  __device__ __forceinline__ void start(const uint16_t* from, int elements, int slot) {
    if (threadIdx.x == 0) start_copy(in(slot), from, elements * 2, barrier + slot);
  }

  __device__ __forceinline__ void start(int number, int slot) {
    start(source + static_cast<int64_t>(number) * S::kFilter, S::kFilter, slot);
  }

  __device__ __forceinline__ void wait(int slot) {
    wait_copy(barrier + slot, (parity >> slot) & 1);
    parity ^= 1u << slot;
  }
};

// What both parts of a sample's way through a stage work on.
template <class S>
struct Room {
  uint16_t *X, *Y;  // the image, and a block's interior
  Weights<S> weights;
  StageScratch& scratch;
};

// X from the entry block's input at `image`, which is in memory.
template <class S>
__device__ __forceinline__ void enter(const StageData& d, const StageGates& g,
                                      const uint16_t* image, uint8_t* keep, uint8_t* open,
                                      Room<S>& room) {
  using In = typename S::Entry;
  constexpr int kTap = S::C * In::C;
  room.weights.start(d.entry1, 10 * kTap, 0);
  room.weights.start(d.entry2, S::kFilter, 1);
  clear_border<In>(room.X);
  move_image<In, true>(room.X, const_cast<uint16_t*>(image));
  sync_threads();
  pool<In>(room.X, room.scratch.partial, room.scratch.means);
  decide<In::C, S::C>(g, 0, room.scratch, keep, open);
  const uint64_t opened = room.scratch.opened;
  room.weights.wait(0);
  Sums<S> inside;
  add_taps<S, In>(inside, room.X, room.weights.in(0), kAllOpen, opened);
  store<S, false>(inside, room.Y, d.entry_biases, opened);
  // The shortcut's sums wait in registers: where they belong the input lies.
  Sums<S> sums;
  int window[S::kRows];
  find_windows<S, In>(window);
  add_tap<S, In>(sums, room.X, window, In::shift(4), room.weights.in(0) + 9 * kTap, kAllOpen,
                 kAllOpen);
  sync_threads();
  if (d.blocks > 0) room.weights.start(0, 0);
  clear_border<S>(room.X);
  room.weights.wait(1);
  add_taps<S, S>(sums, room.Y, room.weights.in(1), opened, kAllOpen);
  store<S, false>(sums, room.X, d.entry_biases + S::C, kAllOpen);
  sync_threads();
}

template <class S, bool ENTRY>
__device__ __forceinline__ void run_sample(const StageData& d, const StageGates& entry,
                                           const StageGates& g, int n, Room<S>& room) {
  StageScratch& scratch = room.scratch;
  Weights<S>& weights = room.weights;
  const int64_t image = static_cast<int64_t>(n) * S::W * S::W * S::C, t = threadIdx.x;
  uint8_t* keep = d.keep + static_cast<int64_t>(n) * (d.blocks + ENTRY);
  uint8_t* open = d.open + static_cast<int64_t>(n) * (d.blocks + ENTRY) * g.groups;
  if (t < g.hidden) {
    scratch.h[t] = d.h[static_cast<int64_t>(n) * g.hidden + t];
    scratch.c[t] = d.c[static_cast<int64_t>(n) * g.hidden + t];
  }
  if constexpr (ENTRY) {
    enter<S>(d, entry, d.x + image * 2, keep, open, room);  // twice as large
    keep += 1, open += g.groups;
  } else {
    if (d.blocks > 0) weights.start(0, 0);
    move_image<S, true>(room.X, const_cast<uint16_t*>(d.x) + image);
    sync_threads();
  }
  bool changed = true;
  for (int b = 0; b < d.blocks; ++b) {
    if (changed) pool<S>(room.X, scratch.partial, scratch.means);
    decide<S::C, S::C>(g, b, scratch, keep + b, open + static_cast<int64_t>(b) * g.groups);
    changed = scratch.keep != 0;
    const uint64_t opened = scratch.opened;
    weights.wait(0);  // what was started before it was known to be needed
    if (changed) {
      const float* bias = d.biases + static_cast<int64_t>(b) * 2 * S::C;
      weights.start(2 * b + 1, 1);
      Sums<S> inside, sums;
      add_taps<S, S>(inside, room.X, weights.in(0), kAllOpen, opened);
      store<S, false>(inside, room.Y, bias, opened);
      sync_threads();
      if (b + 1 < d.blocks) weights.start(2 * b + 2, 0);
      weights.wait(1);
      add_taps<S, S>(sums, room.Y, weights.in(1), opened, kAllOpen);
      store<S, true>(sums, room.X, bias + S::C, kAllOpen);
    } else if (b + 1 < d.blocks) {
      sync_threads();
      weights.start(2 * b + 2, 0);
    }
    sync_threads();
  }
  move_image<S, false>(room.X, d.y + image);
  if (t < g.hidden) {
    d.h_next[static_cast<int64_t>(n) * g.hidden + t] = scratch.h[t];
    d.c_next[static_cast<int64_t>(n) * g.hidden + t] = scratch.c[t];
  }
  sync_threads();
}

template <class S, bool ENTRY>
__global__ void __launch_bounds__(kStageThreads, S::C == 32 ? 2 : 1)
    resident_stage_kernel(const StageData d, const StageGates entry, const StageGates g) {
#if defined(DDI_EMULATE) || __CUDA_ARCH__ >= 900  // bulk copies
  uint16_t* Y = reinterpret_cast<uint16_t*>(shared_memory());
  uint16_t* X = Y + S::kImage;
  uint16_t* buffer = X + (ENTRY ? S::kEntry : S::kImage);
  StageScratch& scratch = *reinterpret_cast<StageScratch*>(buffer + 2 * S::kFilter);
  if (threadIdx.x == 0) {
    init_barrier(scratch.barrier);
    init_barrier(scratch.barrier + 1);
  }
  // The borders stay zero, but for an entry block's; all else is written before it is read.
  for (int i = threadIdx.x; i < S::kImage; i += kStageThreads) X[i] = Y[i] = 0;
  Room<S> room{X, Y, {buffer, scratch.barrier, d.weights}, scratch};
  for (;;) {
    sync_threads();
    if (threadIdx.x == 0) scratch.sample = atomicAdd(d.queue, 1);
    sync_threads();
    const int n = scratch.sample;
    if (n >= d.samples) return;
    run_sample<S, ENTRY>(d, entry, g, n, room);
  }
#endif
}

using Stage16 = Stage<16, 32, 8, 1>;
using Stage32 = Stage<32, 16, 8, 1>;
using Stage64 = Stage<64, 8, 4, 2>;

}  // namespace ddi
