// The micro-kernels around the matrix products of a Winograd convolution (winograd.h): inputs to
// positions, and positions to outputs. A lane is an element of a pixel, whatever it stands for
// (with strips, channel and strip), so nothing here depends on masks.
#pragma once

#include <cstdint>

namespace ddi {

constexpr int kWinogradSide = 6;  // of the largest tile

// Neighbouring tiles of a row of tiles, from [row][column][element] images.
struct WinogradInput {
  // First tile's rows. Rows and columns that do not exist repeat the last one: they only reach
  // outputs that do not exist either, but must be finite.
  const float* row[kWinogradSide];
  int64_t columns;  // that exist, from the first tile's on
  int64_t pixel_stride;
  int64_t tiles;
  int64_t elements;  // of a pixel
  // [position][tile][element], elements padded to whole registers of kLanes.
  float* out;
  int64_t position_stride, tile_stride;
};

// The same tiles' outputs, from [position][tile][panel][kLanes].
struct WinogradOutput {
  const float* in;
  int64_t position_stride, tile_stride;
  int64_t tiles, panels;
  int64_t rows, columns;  // of outputs that exist, from the first tile's on
  const float* bias;      // [panels * kLanes]
  const float* scale;     // [panels * kLanes] or nullptr
  const float* residual;  // laid out as `out`, or nullptr
  float* out;             // first tile's first pixel
  int64_t row_stride, pixel_stride;
  const int64_t* out_at;  // [panels], first column of each
  int last_lanes;         // columns that exist in the last panel
  bool relu;              // keeps NaN, like torch
};

// By m - 2.
struct WinogradMicro {
  void (*input[3])(const WinogradInput& tiles);
  void (*output[3])(const WinogradOutput& tiles);
};

extern const WinogradMicro kScalarWinograd;
#if defined(__x86_64__)
extern const WinogradMicro kAvx2Winograd;
extern const WinogradMicro kAvx512Winograd;
#elif defined(__aarch64__) || defined(__arm__)
extern const WinogradMicro kNeonWinograd;
#endif

// The table for current_isa().
const WinogradMicro& winograd_micro();

}  // namespace ddi
