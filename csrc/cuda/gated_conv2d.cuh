// y = act(scale * mask * (conv(x) + bias) + residual) as an implicit GEMM over the open channels of
// each sample: a block of threads computes BM pixels by 64 output channels of one sample, a step
// multiplies 64 bytes of open input channels at one tap of the filter. x and y are [N, H, W, C],
// weights [Co, kh, kw, Ci]. Lists name the open channels, so that tiles are full whatever the gates
// say: closed channels are neither read nor multiplied. Rows of shared memory are 64 bytes, four
// pieces of 16, swizzled so that neither matrix loads nor float loads meet a bank twice.
#pragma once

#include "warp.cuh"

namespace ddi {

constexpr int kConvThreads = 128, kConvCols = 64, kConvStages = 4, kRowPieces = 4, kRowBytes = 64;

struct ConvShape {
  int samples, H, W, OH, OW, CI, CO, KH, KW, SH, SW, PH, PW, DH, DW;
};

// Lists of channels, open ones first; null: all are open.
struct ConvList {
  const int *channels, *count;  // [samples, channels], [samples]
};

template <class T>
struct ConvData {
  using Word = typename T::Word;
  const Word *x, *weight, *bias, *scale, *residual;  // the last three may be null
  Word* y;
  ConvList in, out;
  int tiles, scale_groups, scale_group_size;
  bool relu, whole_pieces;  // whether y and the residual go by 16 bytes of neighbouring channels
};

__host__ __device__ __forceinline__ constexpr int piece_at(int row, int piece) {
  return row * kRowBytes + ((piece ^ (row >> 1)) & (kRowPieces - 1)) * 16;
}

// A tile of sums: a warp has 32 rows by COLS columns, in fragments of 16 x 8.
template <int BM>
struct ConvTile {
  static constexpr int kWarpsM = BM / 32, kWarpCols = kConvCols * kWarpsM / 4,
                       kCols = kWarpCols / 8;
  static constexpr int kStage = (BM + kConvCols) * kRowBytes;
  static constexpr int kPitch = kConvCols + 8;  // floats between rows of staged sums
  static constexpr int kShared = kConvStages * kStage;
  static_assert(kShared >= BM * kPitch * 4, "sums are staged where the operands were");

  float acc[2][kCols][4] = {};

  static __device__ __forceinline__ int first_row() { return (threadIdx.x >> 5) % kWarpsM * 32; }
  static __device__ __forceinline__ int first_col() {
    return (threadIdx.x >> 5) / kWarpsM * kWarpCols;
  }

  // sums[row, col] for the whole block; between two waits of all threads.
  __device__ __forceinline__ void stage(float* sums) const {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < kCols; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = first_row() + i * 16 + half * 8 + (lane >> 2);
          float* to = sums + row * kPitch + first_col() + j * 8 + (lane & 3) * 2;
          to[0] = acc[i][j][half * 2], to[1] = acc[i][j][half * 2 + 1];
        }
  }
};

// Adds the product of a stage's BM rows and 64 columns; 16-bit elements, on tensor cores.
template <class T, int BM>
__device__ __forceinline__ void multiply_halves(ConvTile<BM>& tile, const unsigned char* rows,
                                                const unsigned char* cols) {
  using Tile = ConvTile<BM>;
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    uint32_t a[2][4], b[4];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      load_matrices(a[i],
                    rows + piece_at(Tile::first_row() + i * 16 + (lane & 15), k * 2 + (lane >> 4)));
#pragma unroll
    for (int j = 0; j < Tile::kCols; j += 2) {
      const int col = Tile::first_col() + j * 8 + (lane & 7) + (lane >> 4) * 8;
      load_matrices(b, cols + piece_at(col, k * 2 + ((lane >> 3) & 1)));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        T::multiply(tile.acc[i][j], a[i], b[0], b[1]);
        T::multiply(tile.acc[i][j + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// The same in float32; a thread owns what it would own of a fragment.
template <int BM>
__device__ __forceinline__ void multiply_floats(ConvTile<BM>& tile, const unsigned char* rows,
                                                const unsigned char* cols) {
  using Tile = ConvTile<BM>;
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int piece = 0; piece < kRowPieces; ++piece) {
    float4 a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = Tile::first_row() + i * 8 + (lane >> 2);
      a[i] = *reinterpret_cast<const float4*>(rows + piece_at(row, piece));
    }
#pragma unroll
    for (int j = 0; j < Tile::kCols; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int col = Tile::first_col() + j * 8 + (lane & 3) * 2 + half;
        const float4 b = *reinterpret_cast<const float4*>(cols + piece_at(col, piece));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& sum = tile.acc[i / 2][j][i % 2 * 2 + half];
          sum += a[i].x * b.x;
          sum += a[i].y * b.y;
          sum += a[i].z * b.z;
          sum += a[i].w * b.w;
        }
      }
  }
}

struct Bfloat16 {
  using Word = uint16_t;
  static __device__ __forceinline__ float widen(Word w) {
    return as_float(static_cast<uint32_t>(w) << 16);
  }
  static __device__ __forceinline__ Word narrow(float v) {
    return static_cast<Word>(pack_bf16(v, 0.f));
  }
  static __device__ __forceinline__ void multiply(float (&acc)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
    ddi::multiply(acc, a, b0, b1);
  }
};

struct Float16 {
  using Word = uint16_t;
  static __device__ __forceinline__ float widen(Word w) { return from_f16(w); }
  static __device__ __forceinline__ Word narrow(float v) { return to_f16(v); }
  static __device__ __forceinline__ void multiply(float (&acc)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
    multiply_f16(acc, a, b0, b1);
  }
};

struct Float32 {
  using Word = float;
  static __device__ __forceinline__ float widen(Word w) { return w; }
  static __device__ __forceinline__ Word narrow(float v) { return v; }
};

template <class T, int BM>
__device__ __forceinline__ void multiply_stage(ConvTile<BM>& tile, const unsigned char* rows,
                                               const unsigned char* cols) {
  if constexpr (sizeof(typename T::Word) == 2) {
    multiply_halves<T>(tile, rows, cols);
  } else {
    multiply_floats(tile, rows, cols);
  }
}

// 16 bytes of neighbouring channels.
template <class T>
union ConvPiece {
  static constexpr int kChannels = 16 / sizeof(typename T::Word);
  uint4 whole;
  typename T::Word words[kChannels];
};

// What a thread copies of the operands: one piece of every 32nd row and column, at the tap and the
// open channels that are next. PIECES: open channels come in whole aligned pieces, copied behind
// the arithmetic; else each is looked up, and one loaded by itself.
template <class T, int BM, bool PIECES>
struct ConvLoader {
  using Word = typename T::Word;
  static constexpr int kChannels = ConvPiece<T>::kChannels, kUnits = PIECES ? 1 : kChannels;
  static constexpr int kRows = BM / 32, kCols = kConvCols / 32;
  static constexpr int kStepChannels = kRowPieces * kChannels;

  const ConvShape& s;
  const Word *x, *weight;
  const int* list;
  int count, tap_h = 0, tap_w = 0, position;
  int h[kRows], w[kRows], col[kCols];  // of windows; of filters, -1 for none
  int channel[kUnits];                 // -1 for none

  __device__ __forceinline__ ConvLoader(const ConvData<T>& d, const ConvShape& shape, int n,
                                        int first_pixel, int first_col, int out_count)
      : s(shape), weight(d.weight) {
    x = d.x + static_cast<int64_t>(n) * s.H * s.W * s.CI;
    list = d.in.channels == nullptr ? nullptr : d.in.channels + static_cast<int64_t>(n) * s.CI;
    count = list == nullptr ? s.CI : d.in.count[n];
    position = static_cast<int>(threadIdx.x % kRowPieces) * kChannels;
    const int first = threadIdx.x / kRowPieces;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int pixel = first_pixel + first + i * 32;
      // A row that does not exist has all its window above the image.
      h[i] = pixel < s.OH * s.OW ? pixel / s.OW * s.SH - s.PH : -0x40000000;
      w[i] = pixel % s.OW * s.SW - s.PW;
    }
    const int* columns =
        d.out.channels == nullptr ? nullptr : d.out.channels + static_cast<int64_t>(n) * s.CO;
#pragma unroll
    for (int j = 0; j < kCols; ++j) {
      const int slot = first_col + first + j * 32;
      const int co = slot >= out_count ? -1 : columns == nullptr ? slot : columns[slot];
      col[j] = co < 0 ? -1 : co * (s.KH * s.KW * s.CI);
    }
    find_channels();
  }

  __device__ __forceinline__ int steps() const {
    return (count + kStepChannels - 1) / kStepChannels * (s.KH * s.KW);
  }

  __device__ __forceinline__ void find_channels() {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int at = position + u;
      channel[u] = at >= count ? -1 : list == nullptr ? at : list[at];
    }
  }

  // Copies the next step's operands, taps first, then on to the next channels.
  __device__ __forceinline__ void start(unsigned char* rows, unsigned char* cols) {
    const int piece = threadIdx.x % kRowPieces, first = threadIdx.x / kRowPieces;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int v = h[i] + tap_h * s.DH, u = w[i] + tap_w * s.DW;
      const bool inside = static_cast<unsigned>(v) < static_cast<unsigned>(s.H) &&
                          static_cast<unsigned>(u) < static_cast<unsigned>(s.W);
      copy(rows + piece_at(first + i * 32, piece), x, inside ? (v * s.W + u) * s.CI : -1);
    }
    const int tap = (tap_h * s.KW + tap_w) * s.CI;
#pragma unroll
    for (int j = 0; j < kCols; ++j)
      copy(cols + piece_at(first + j * 32, piece), weight, col[j] < 0 ? -1 : col[j] + tap);
    if (++tap_w < s.KW) return;
    tap_w = 0;
    if (++tap_h < s.KH) return;
    tap_h = 0;
    position += kStepChannels;
    find_channels();
  }

  // The thread's channels at `offset`, zeros where it or the channel is negative.
  __device__ __forceinline__ void copy(unsigned char* to, const Word* from, int offset) {
    if constexpr (PIECES) {
      const bool real = offset >= 0 && channel[0] >= 0;
      start_piece(to, real ? from + offset + channel[0] : from, real);
    } else {
      ConvPiece<T> piece;
#pragma unroll
      for (int u = 0; u < kUnits; ++u)
        piece.words[u] = offset >= 0 && channel[u] >= 0 ? from[offset + channel[u]] : Word{};
      *reinterpret_cast<uint4*>(to) = piece.whole;
    }
  }
};

// Writes the tile from its staged sums: a thread has a piece of every (128 / pieces)-th row.
template <class T, int BM>
__device__ __forceinline__ void finish(const ConvData<T>& d, const ConvShape& s, const float* sums,
                                       int n, int first_pixel, int first_col, int out_count) {
  using Piece = ConvPiece<T>;
  constexpr int kChannels = Piece::kChannels, kPieces = kConvCols / kChannels;
  const int at = static_cast<int>(threadIdx.x) % kPieces * kChannels;
  const int* columns =
      d.out.channels == nullptr ? nullptr : d.out.channels + static_cast<int64_t>(n) * s.CO;
  int channel[kChannels];
  float bias[kChannels], scale[kChannels];
#pragma unroll
  for (int e = 0; e < kChannels; ++e) {
    const int slot = first_col + at + e;
    const bool open = slot < out_count;
    channel[e] = slot >= s.CO ? -1 : columns == nullptr ? slot : columns[slot];
    bias[e] = open && d.bias != nullptr ? T::widen(d.bias[channel[e]]) : 0.f;
    scale[e] = 1.f;
    if (open && d.scale != nullptr)
      scale[e] = T::widen(
          d.scale[static_cast<int64_t>(n) * d.scale_groups + channel[e] / d.scale_group_size]);
  }
  if (channel[0] < 0) return;
  const int left = s.OH * s.OW - first_pixel, rows = left < BM ? left : BM;
  const int64_t first = static_cast<int64_t>(n) * s.OH * s.OW + first_pixel;
  for (int row = threadIdx.x / kPieces; row < rows; row += kConvThreads / kPieces) {
    const int64_t pixel = (first + row) * s.CO;
    Piece piece;
    if (d.residual != nullptr) {
      if (d.whole_pieces) {
        piece.whole = *reinterpret_cast<const uint4*>(d.residual + pixel + channel[0]);
      } else {
#pragma unroll
        for (int e = 0; e < kChannels; ++e)
          if (channel[e] >= 0) piece.words[e] = d.residual[pixel + channel[e]];
      }
    }
#pragma unroll
    for (int e = 0; e < kChannels; ++e) {
      float v = (sums[row * ConvTile<BM>::kPitch + at + e] + bias[e]) * scale[e];
      // By selection: a closed column may have met NaN or infinity in an open input.
      if (first_col + at + e >= out_count) v = 0.f;
      if (d.residual != nullptr) v += T::widen(piece.words[e]);
      if (d.relu && v < 0.f) v = 0.f;  // NaN stays
      piece.words[e] = T::narrow(v);
    }
    if (d.whole_pieces) {
      *reinterpret_cast<uint4*>(d.y + pixel + channel[0]) = piece.whole;
    } else {
#pragma unroll
      for (int e = 0; e < kChannels; ++e)
        if (channel[e] >= 0) d.y[pixel + channel[e]] = piece.words[e];
    }
  }
}

// Grid: tiles of pixels, samples, tiles of output channels, the last slowest: those that hold open
// channels start first.
template <class T, int BM, bool PIECES>
__global__ void __launch_bounds__(kConvThreads)
    gated_conv2d_kernel(const ConvData<T> d, const ConvShape s) {
  using Tile = ConvTile<BM>;
  const int tile = blockIdx.x % d.tiles, n = blockIdx.x / d.tiles % s.samples;
  const int first_col = blockIdx.x / d.tiles / s.samples * kConvCols;
  const int out_count = d.out.channels == nullptr ? s.CO : d.out.count[n];
  unsigned char* shared = shared_memory();
  const auto rows = [&](int step) { return shared + step % kConvStages * Tile::kStage; };
  const auto cols = [&](int step) { return rows(step) + BM * kRowBytes; };

  Tile sums;
  if (first_col < out_count) {
    ConvLoader<T, BM, PIECES> loader(d, s, n, tile * BM, first_col, out_count);
    const int steps = loader.steps();
    for (int step = 0; step < kConvStages - 1; ++step) {
      if (step < steps) loader.start(rows(step), cols(step));
      commit_pieces();
    }
    for (int step = 0; step < steps; ++step) {
      wait_pieces<kConvStages - 2>();
      sync_threads();
      // Into the stage that everyone read in the step before.
      const int next = step + kConvStages - 1;
      if (next < steps) loader.start(rows(next), cols(next));
      commit_pieces();
      multiply_stage<T>(sums, rows(step), cols(step));
    }
  }
  wait_pieces<0>();
  sync_threads();
  float* staged = reinterpret_cast<float*>(shared);
  sums.stage(staged);
  sync_threads();
  finish<T, BM>(d, s, staged, n, tile * BM, first_col, out_count);
}

}  // namespace ddi
