// The micro-kernels, one table of functions per instruction set: the only code that differs
// between machines. Weights come in panels of kLanes output channels, [taps][input channels]
// [kLanes]; activations inside a driver are compact, [pixel][open channel], so that the inner loop
// of a convolution is one contiguous walk whatever the masks are.
//
// Strips: where few output channels would leave lanes of a panel empty, the driver cuts the image
// into 2 or 4 strips of rows and computes them side by side. A compact activation is then [pixel]
// [open channel][strip], a panel holds kLanes / strips channels, each repeated for every strip, and
// nothing else changes.
//
// Names go from the instruction set to the type of x. A file is micro_<isa>_<what>_<dtype>, without
// <what> if it is of convolutions, without <dtype> if of several; a table is k<Isa><What><Dtype>,
// and a function that another file calls <isa>_<what>_<dtype>.
//
// Words of csrc/cpu:
//   lane       one of the kLanes columns of a panel; elsewhere one of the values of a register
//   cell       a channel, or the neighbouring ones that an instruction sums up at once (Types)
//   panel      the weights of kLanes output channels; a row of it is a cell for each of them
//   tile       pixels x panels whose sums stay in registers; Winograd's are m x m outputs
//   strip      one of the parts of an image that are computed side by side, see above
//   row block  output rows of every strip, so many that what they read and write stays in L2
//   conv plan  lists of open channels, weights and cuts of the image, made for a sample's masks
//   chain      convolutions that a sample goes through one after the other; each is a link
//   interior   what one link writes and the next one reads: compact, and never outside of a call
//   piece      one convolution group of one sample on its way through a chain
//   room       a piece of the caller's workspace: drivers allocate nothing
#pragma once

#include <cstdint>

#include "base/dtypes.h"

namespace ddi {

constexpr int kLanes = 16;
constexpr int kMaxPanels = 3;      // of a tile
constexpr int kPrefetchRows = 48;  // how far ahead weight rows are fetched

// What a kernel for x of type T computes with. A cell is the unit of compact activations and of
// weights: one channel, or as many neighbouring ones as an instruction multiplies and adds at once.
// A panel row is kLanes cells; channels beyond the last have weights of zero.
template <class T>
struct Types {
  using Cell = T;
  using Acc = T;                           // of sums, bias, scale and compact results
  using Out = T;                           // of residual and y
  static constexpr int kPack = 1;          // channels of a cell
  static constexpr Cell kZero = 0;         // activations that are zero
  static constexpr bool kInteger = false;  // sums are int32 until they are multiplied by a factor
};

// Converted on the way in: the inner loop is that of float.
template <>
struct Types<half> {
  using Cell = float;
  using Acc = float;
  using Out = half;
  static constexpr int kPack = 1;
  static constexpr Cell kZero = 0;
  static constexpr bool kInteger = false;
};

// Pairs, the first channel in the lower half.
template <>
struct Types<bf16> {
  using Cell = uint32_t;
  using Acc = float;
  using Out = bf16;
  static constexpr int kPack = 2;
  static constexpr Cell kZero = 0;
  static constexpr bool kInteger = false;
};

// Four channels, the first in the lowest byte. Weights are signed; activations are unsigned, 128
// more than they mean, because that is what processors multiply. Sums start at what takes it back.
template <>
struct Types<int8_t> {
  using Cell = uint32_t;
  using Acc = float;
  using Out = float;
  static constexpr int kPack = 4;
  static constexpr Cell kZero = 0x80808080u;
  static constexpr bool kInteger = true;
};

// The open channels of one sample.
struct ChannelSet {
  int64_t channels;      // all of them
  int64_t open;          // how many are open
  const int32_t* index;  // [open], ascending
  const uint16_t* bits;  // [ceil(channels / 16)], bit i of word k is channel 16 k + i
};

// A stretch of the reduction that is contiguous in the activations, and in the weights if tiles
// find them without a list.
struct Segment {
  int64_t offset;  // from the window of the output pixel
  int64_t length;  // steps: cells x taps
  int64_t row;     // panel row of the first step
};

// One register tile: two runs of equally many pixels (a single run of an odd number is cut in the
// middle, the first half longer) times up to kMaxPanels weight panels.
template <class Cell, class Acc>
struct ConvTileOf {
  const Cell* in[2];     // window of the first pixel of each run
  int64_t pixel_stride;  // from one output pixel's window to the next
  const Segment* segment;
  int64_t segments;
  const int32_t* row;  // panel row of each step, if kPack = 1; nullptr: as in `segment`
  // Panel rows to fetch into L2 meanwhile, one a step: ahead + kLanes * (ahead_row[step * kPack] /
  // kPack); nullptr: none. A kernel may leave it out: tiles of one panel have no time for it.
  const Cell* ahead;
  const int32_t* ahead_row;
  const Cell* weight[kMaxPanels];
  const int32_t* start;  // [panels * kLanes], of integer sums
  const Acc* factor;     // [panels * kLanes], of integer sums
  // [panels * kLanes], or nullptr if the sums are wanted as they are, whole panels of them, without
  // scale, residual and activation.
  const Acc* bias;
  const Acc* scale;        // [panels * kLanes] or nullptr
  const Acc* residual[2];  // laid out as `out`, or nullptr
  Acc* out[2];             // first pixel of each run
  int64_t out_stride;
  int64_t out_at[kMaxPanels];  // where a panel's columns go, from the pixel's first
  int last_lanes;              // columns that exist in the last panel
  bool relu;                   // keeps NaN, like torch
};

template <class T>
using ConvTile = ConvTileOf<typename Types<T>::Cell, typename Types<T>::Acc>;

// The lanes of a compressed panel that come from one packed panel.
template <class Cell>
struct PanelMoveOf {
  const Cell* src;       // the packed panel
  uint32_t mask;         // lanes of the compressed panel to fill
  int32_t from[kLanes];  // by lane: the column of src
};

template <class T>
using PanelMove = PanelMoveOf<typename Types<T>::Cell>;

template <class T>
struct Micro {
  using Cell = typename Types<T>::Cell;
  using Acc = typename Types<T>::Acc;
  using Out = typename Types<T>::Out;

  int max_pixels[kMaxPanels + 1];  // of a tile, by its panels; 0: no such tile
  int max_strips;

  void (*conv_tile)(const ConvTile<T>& tile, int pixels, int panels, int strips);

  // One compressed panel, dst[steps][kLanes]. Channel j of the cells of step k comes from channel
  // c % kPack of row c / kPack of the packed panels, c = row[k * kPack + j]; is 0 if c is negative.
  // Lanes that no move fills become 0. Reads `row` up to kPrefetchRows past the end.
  void (*compress_panel)(const PanelMove<T>* moves, int n_moves, const int32_t* row, int64_t steps,
                         Cell* dst);

  // dst[pixels][cells] from channel-contiguous pixels. May write up to kLanes past the end.
  void (*compress_pixels)(const T* src, int64_t pixel_stride, int64_t pixels, const ChannelSet& set,
                          Cell* dst);

  // dst[pixels][cells] from pixel-contiguous channels. May write up to kLanes past the end.
  void (*gather_planes)(const T* src, int64_t channel_stride, int64_t pixels, const ChannelSet& set,
                        Cell* dst);

  // data[pixels][channels] = relu(scale * data + shift), both by channel, in place. Keeps NaN. Of
  // float and double, else nullptr.
  void (*affine_relu)(int64_t pixels, int64_t channels, const T* scale, const T* shift, T* data);

  // dst[i * strips + s] = src[s * src_stride + i]. May read and write up to kLanes * strips past
  // the end.
  void (*interleave)(const Cell* src, int64_t src_stride, int strips, int64_t count, Cell* dst);

  // dst[s * dst_stride + i] = src[i * strips + s], under the same condition.
  void (*deinterleave)(const Acc* src, int strips, int64_t count, int64_t dst_stride, Acc* dst);

  // dst[pixels][set.channels] = act(src at open channels, else 0, + residual), pixels of dst and
  // residual dst_stride apart; residual may be dst itself. Rows of src are src_stride apart and may
  // be read up to kLanes past their end.
  void (*expand_pixels)(const Acc* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                        const Out* residual, bool relu, int64_t dst_stride, Out* dst);

  // The open channels of the same, without residual and activation; writes no other element. Of
  // float and double, else nullptr.
  void (*scatter_pixels)(const Acc* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                         int64_t dst_stride, Out* dst);

  // The words of set.bits without an open channel of the same.
  void (*fill_closed)(int64_t pixels, const ChannelSet& set, const Out* residual, bool relu,
                      int64_t dst_stride, Out* dst);

  // The open channels of the same into pixel-contiguous channels, channel_stride apart.
  void (*scatter_planes)(const Acc* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                         int64_t channel_stride, const Out* residual, bool relu, Out* dst);

  // sum[channels] = over channel-contiguous pixels, in a fixed order.
  void (*sum_pixels)(const Out* src, int64_t pixel_stride, int64_t pixels, int64_t channels,
                     Acc* sum);

  // For integer sums, else nullptr: start[kLanes] of a panel with these segments, -128 times the
  // sum of its weights; 0 where conv_tile takes the 128 off activations.
  void (*sum_weights)(const uint32_t* panel, const Segment* segment, int64_t segments,
                      int32_t* start);

  // For integer sums, else nullptr: dst = src / scale, rounded to nearest even and clamped; NaN
  // becomes 0.
  void (*quantize)(const float* src, int64_t count, float scale, int8_t* dst);
};

extern const Micro<float> kScalarF32;
extern const Micro<double> kScalarF64;
extern const Micro<half> kScalarF16;
extern const Micro<bf16> kScalarBf16;
extern const Micro<int8_t> kScalarInt8;
#if defined(__x86_64__)
extern const Micro<float> kAvx2F32;
extern const Micro<half> kAvx2F16;
extern const Micro<bf16> kAvx2Bf16;
extern const Micro<int8_t> kAvx2Int8;
extern const Micro<float> kAvx512F32;
extern const Micro<half> kAvx512F16;
extern const Micro<bf16> kAvx512Bf16;
extern const Micro<int8_t> kAvx512VnniInt8;  // with VNNI
extern const Micro<bf16> kAvx512DotBf16;     // with AVX512-BF16

extern const Micro<bf16> kAvx512AmxBf16;  // with AMX
extern const Micro<int8_t> kAvx512AmxInt8;

// The tiles of these tables, which have the rest from kAvx512Bf16 and kAvx512VnniInt8.
void avx512_dot_conv_tile_bf16(const ConvTile<bf16>& tile, int pixels, int panels, int strips);
void avx512_amx_conv_tile_bf16(const ConvTile<bf16>& tile, int pixels, int panels, int strips);
void avx512_amx_conv_tile_int8(const ConvTile<int8_t>& tile, int pixels, int panels, int strips);
#elif defined(__aarch64__) || defined(__arm__)
extern const Micro<float> kNeonF32;
extern const Micro<half> kNeonF16;  // 64-bit ARM
extern const Micro<bf16> kNeonBf16;
extern const Micro<int8_t> kNeonInt8;
extern const Micro<int8_t> kNeonDotInt8;  // with FEAT_DotProd
extern const Micro<bf16> kNeonDotBf16;    // with FEAT_BF16

// The tiles of these tables, which have the rest from kNeonInt8 and kNeonBf16.
constexpr int kNeonDotPixels = 5;
void neon_dot_conv_tile_int8(const ConvTile<int8_t>& tile, int pixels, int panels, int strips);
void neon_dot_conv_tile_bf16(const ConvTile<bf16>& tile, int pixels, int panels, int strips);
#endif

// The table for current_isa(); float64 is always scalar.
template <class T>
const Micro<T>& micro();

}  // namespace ddi
