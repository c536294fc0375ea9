// The bfloat16 and int8 tiles of processors with AMX: one instruction multiplies 16 pixels x 16
// cells by 16 panel rows, which lie in memory the way a tile register holds them. Two runs of
// pixels times two panels take all eight registers: 0 to 3 for the sums (of run r and panel v the
// register 2 r + v), 4 and 5 for the pixels, 6 and 7 for the weights.
//
// Written after Intel's manual and checked by emulating each instruction (tests/build), but not run
// on such a processor so far: isa.h offers it only to those who ask.
#if defined(__x86_64__)
#include <immintrin.h>

#include "base/isa_region.h"
#include "micro/micro.h"

DDI_REGION_AVX512_AMX
#include "micro_avx512_lanes.h"
#include "micro_avx512_pixels.h"
#include "micro_avx512_tile.h"

namespace ddi {
namespace {

constexpr int kRows = 16;  // of a register; a row is kLanes cells or sums
constexpr int64_t kRowBytes = kLanes * 4;
constexpr int kMostPixels = 2 * kRows;

// As the processor takes it.
struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

struct TileConfigs {
  TileConfig of_pixels[kMostPixels + 1];
};

// Registers have as many rows as their run has pixels, so that nothing is read beyond it.
constexpr TileConfigs make_configs() {
  TileConfigs configs = {};
  for (int pixels = 1; pixels <= kMostPixels; ++pixels) {
    const int first = (pixels + 1) / 2, second = pixels / 2;
    const int rows[8] = {first, first, second, second, first, second, kRows, kRows};
    TileConfig& config = configs.of_pixels[pixels];
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
      config.rows[i] = static_cast<uint8_t>(rows[i]);
      config.row_bytes[i] = rows[i] > 0 ? kRowBytes : 0;
    }
  }
  return configs;
}

constexpr TileConfigs kConfigs = make_configs();

// R runs, V panels. The intrinsics want literal registers.
struct TilePairs {
  using Type = bf16;
  using Sum = __m512i;
  template <int R, int V>
  static DDI_INLINE void start(const ConvTile<bf16>&) {
    _tile_zero(0);
    if (V > 1) _tile_zero(1);
    if (R > 1) _tile_zero(2);
    if (R > 1 && V > 1) _tile_zero(3);
  }
  template <int R, int V>
  static DDI_INLINE void multiply_add() {
    _tile_dpbf16ps(0, 4, 6);
    if (V > 1) _tile_dpbf16ps(1, 4, 7);
    if (R > 1) _tile_dpbf16ps(2, 5, 6);
    if (R > 1 && V > 1) _tile_dpbf16ps(3, 5, 7);
  }
  static DDI_INLINE __m512 value(const ConvTile<bf16>&, int, Sum sum) {
    return _mm512_castsi512_ps(sum);
  }
};

struct TileBytes {
  using Type = int8_t;
  using Sum = __m512i;
  // The same row for every pixel: rows that are no bytes apart.
  template <int R, int V>
  static DDI_INLINE void start(const ConvTile<int8_t>& t) {
    _tile_loadd(0, t.start, 0);
    if (V > 1) _tile_loadd(1, t.start + kLanes, 0);
    if (R > 1) _tile_loadd(2, t.start, 0);
    if (R > 1 && V > 1) _tile_loadd(3, t.start + kLanes, 0);
  }
  template <int R, int V>
  static DDI_INLINE void multiply_add() {
    _tile_dpbusd(0, 4, 6);
    if (V > 1) _tile_dpbusd(1, 4, 7);
    if (R > 1) _tile_dpbusd(2, 5, 6);
    if (R > 1 && V > 1) _tile_dpbusd(3, 5, 7);
  }
  static DDI_INLINE __m512 value(const ConvTile<int8_t>& t, int panel, Sum sum) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(t.factor + panel * kLanes));
  }
};

// Where the next cells and weights are.
struct Operands {
  const uint32_t* pixels[2];
  int64_t pixel_stride;
  const uint32_t* weights[2];
};

// Room for the end of a segment, which has fewer steps than a register.
struct alignas(64) Padded {
  uint32_t pixels[2][kRows * kLanes];
  uint32_t weights[2][kRows * kLanes];
};

struct alignas(64) Sums {
  uint32_t of[4][kRows * kLanes];
};

// To the intrinsics of GCC 12 a load reads no memory: without this the writes before and after it
// might change places with it.
DDI_INLINE void keep_order() { __asm__ volatile("" ::: "memory"); }

template <class Op, int R, int V>
DDI_INLINE void multiply_add(const Operands& x) {
  const int64_t stride = x.pixel_stride * static_cast<int64_t>(sizeof(uint32_t));
  keep_order();
  _tile_loadd(4, x.pixels[0], stride);
  if (R > 1) _tile_loadd(5, x.pixels[1], stride);
  _tile_loadd(6, x.weights[0], kRowBytes);
  if (V > 1) _tile_loadd(7, x.weights[1], kRowBytes);
  keep_order();
  Op::template multiply_add<R, V>();
}

// Copies of the last steps, zeros behind both: what lies there may be NaN, or no memory of ours.
template <int R, int V>
DDI_INLINE Operands pad(const Operands& x, int pixels, int64_t steps, Padded& room) {
  const __mmask16 cells = first_lanes(steps);
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < (pixels + 1 - r) / 2; ++p) {
      const uint32_t* src = x.pixels[r] + p * x.pixel_stride;
      _mm512_store_si512(room.pixels[r] + p * kLanes, _mm512_maskz_loadu_epi32(cells, src));
    }
  }
  for (int v = 0; v < V; ++v) {
    for (int64_t k = 0; k < kRows; ++k) {
      const __m512i row =
          k < steps ? _mm512_loadu_si512(x.weights[v] + k * kLanes) : _mm512_setzero_si512();
      _mm512_store_si512(room.weights[v] + k * kLanes, row);
    }
  }
  return {{room.pixels[0], room.pixels[1]}, kLanes, {room.weights[0], room.weights[1]}};
}

template <class Op, int R, int V>
DDI_INLINE void add_segment(const ConvTile<typename Op::Type>& t, const Segment& segment,
                            int pixels, Padded& room) {
  const int64_t at = segment.row * kLanes;
  Operands x = {{t.in[0] + segment.offset, t.in[1] + segment.offset},
                t.pixel_stride,
                {t.weight[0] + at, t.weight[V - 1] + at}};
  int64_t left = segment.length;
  for (; left >= kRows; left -= kRows) {
    multiply_add<Op, R, V>(x);
    for (int i = 0; i < 2; ++i) {
      x.pixels[i] += kRows;
      x.weights[i] += kRows * kLanes;
    }
  }
  if (left > 0) multiply_add<Op, R, V>(pad<R, V>(x, pixels, left, room));
}

template <class Op, int R, int V>
DDI_INLINE void finish_tile(const ConvTile<typename Op::Type>& t, int pixels, const Sums& sums) {
  for (int v = 0; v < V; ++v) {
    const __mmask16 lanes = first_lanes(v == V - 1 ? t.last_lanes : kLanes);
    for (int r = 0; r < R; ++r) {
      for (int p = 0; p < (pixels + 1 - r) / 2; ++p) {
        const __m512i sum = _mm512_load_si512(sums.of[2 * r + v] + p * kLanes);
        const int64_t at = p * t.out_stride + t.out_at[v];
        if (t.bias == nullptr) {
          _mm512_storeu_ps(t.out[r] + at, Op::value(t, v, sum));
        } else {
          store_outputs<Op>(t, r, at, v, lanes, Op::value(t, v, sum));
        }
      }
    }
  }
}

// Leaves the tile registers released: a thread that holds them is slower to switch, and other code
// configures them for itself.
template <class Op, int R, int V>
void amx_tile_of(const ConvTile<typename Op::Type>& t, int pixels) {
  Padded room;
  Sums sums;
  _tile_loadconfig(&kConfigs.of_pixels[pixels]);
  Op::template start<R, V>(t);
  for (int64_t s = 0; s < t.segments; ++s) add_segment<Op, R, V>(t, t.segment[s], pixels, room);
  _tile_stored(0, sums.of[0], kRowBytes);
  if (V > 1) _tile_stored(1, sums.of[1], kRowBytes);
  if (R > 1) _tile_stored(2, sums.of[2], kRowBytes);
  if (R > 1 && V > 1) _tile_stored(3, sums.of[3], kRowBytes);
  _tile_release();
  finish_tile<Op, R, V>(t, pixels, sums);
}

template <class Op>
void amx_tile(const ConvTile<typename Op::Type>& t, int pixels, int panels) {
  if (pixels == 1) return (panels == 1 ? amx_tile_of<Op, 1, 1> : amx_tile_of<Op, 1, 2>)(t, pixels);
  (panels == 1 ? amx_tile_of<Op, 2, 1> : amx_tile_of<Op, 2, 2>)(t, pixels);
}

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

void avx512_amx_conv_tile_bf16(const ConvTile<bf16>& tile, int pixels, int panels,
                               int /*strips: 1*/) {
  amx_tile<TilePairs>(tile, pixels, panels);
}

void avx512_amx_conv_tile_int8(const ConvTile<int8_t>& tile, int pixels, int panels,
                               int /*strips: 1*/) {
  amx_tile<TileBytes>(tile, pixels, panels);
}

}  // namespace ddi
#endif
