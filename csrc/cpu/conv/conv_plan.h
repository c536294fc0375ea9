// A conv plan is what follows from the masks of one sample: lists of open channels, the weights
// that go with them, the walk over the inputs, and how the image is cut. Made by conv_planner.h,
// followed by gated_conv2d_sample.h.
#pragma once

#include <algorithm>

#include "base/arena.h"
#include "conv_link.h"
#include "micro/micro.h"
#include "micro/winograd.h"

namespace ddi {

constexpr int64_t kRowBlockBytes = 384 * 1024;  // inputs and outputs, to stay in L2
constexpr int64_t kGroupBytes = 640 * 1024;     // weight panels of a tile, to stay in L2
constexpr int64_t kWayBytes = 4096;             // of L1: lines so far apart share a set

// Beyond four panels too few lanes are empty for strips to pay.
constexpr int64_t kMaxStripChannels = 4 * kLanes;

// Of the kernel, or of the transforms that the convolution may take.
inline int64_t most_taps(const Conv2dShape& s) {
  int64_t most = s.kh * s.kw;
  for (const int m : winograd_forms(s.kh, s.kw).m) {
    if (s.winograd && has_winograd(m, s.co, s.ci)) most = std::max(most, winograd_taps(m));
  }
  return most;
}

// With strips a panel holds fewer channels.
inline int64_t max_panels(int64_t channels, int strips) {
  return std::max(ceil_div(channels, kLanes),
                  ceil_div(std::min(channels, kMaxStripChannels), kLanes / strips));
}

template <class T>
struct ConvPlan {
  using Cell = typename Types<T>::Cell;
  using Acc = typename Types<T>::Acc;
  static constexpr int kPack = Types<T>::kPack;

  int64_t sample = -1, group = -1;
  ChannelSet in, out;
  int32_t *in_index, *out_index;
  uint16_t *in_bits, *out_bits;
  int32_t* row;  // panel row of each step of the reduction, as compress_panel takes it
  Segment* segment;
  Cell* panels;
  Acc *bias, *scale;
  int32_t* start;              // of integer sums, by compact panel
  Acc* factor;                 // of integer sums
  Acc *pre_scale, *pre_shift;  // of the open inputs, if the call has them
  const Cell** panel;          // weights of each compact panel
  int64_t* panel_out;          // its first column in y, if direct_out

  int winograd;    // m of the transform that the sample takes, or 0
  int64_t taps;    // of its weights: of the kernel, or of the transform
  int64_t phases;  // of the image, neighbours in a compact pixel
  int64_t n_panels, steps, segments;
  int64_t cells;     // of the open inputs
  int64_t elements;  // of a compact pixel: cells of all strips and phases
  int64_t runs;      // of neighbouring open inputs
  int strips;
  bool whole_panels;                 // open outputs are whole panels
  bool compress;                     // panels are gathered into `panels`
  bool ready;                        // panels have been gathered and summed up, if they must be
  bool listed;                       // tiles find the weights of each step through `row`
  bool direct_in;                    // tiles read x itself
  bool direct_out;                   // tiles write y itself
  bool collide;                      // pixels of a tile fall into the same set of L1
  int64_t row_stride, pixel_stride;  // of what tiles read
  int64_t strip_rows, block_rows, row_blocks;  // rows of a strip and of a row block
  const Cell* from = nullptr;                  // interiors, where the call has them
  Cell* to = nullptr;
  int64_t from_stride, to_stride;  // from pixel to pixel

  // Columns of a compact panel to write, of co of them.
  int last_lanes(int64_t co, int64_t k) const {
    const int64_t columns = direct_out ? co - panel_out[k] : kLanes;
    return static_cast<int>(columns < kLanes ? columns : kLanes);
  }
};

// What the tiles of a row block read and write.
template <class T>
struct RowBlockView {
  const typename Types<T>::Cell* in;       // window of the first output
  typename Types<T>::Acc* out;             // of the first output
  const typename Types<T>::Acc* residual;  // laid out as `out`, or nullptr
  int64_t rows, out_row, out_stride;       // of outputs, from row to row, from pixel to pixel
  bool relu;
};

template <class T>
ConvPlan<T> make_conv_plan(const Conv2dShape& s, Arena& arena) {
  ConvPlan<T> plan;
  const int64_t ci = s.group_ci(), co = s.group_co();
  const int64_t taps = most_taps(s);
  const int64_t panels = max_panels(co, micro<T>().max_strips);
  const int64_t steps = taps * ceil_div(ci, plan.kPack);
  plan.in_index = arena.take<int32_t>(ci);
  plan.out_index = arena.take<int32_t>(co);
  plan.in_bits = arena.take<uint16_t>(ceil_div(ci, kLanes));
  plan.out_bits = arena.take<uint16_t>(ceil_div(co, kLanes));
  plan.row = arena.take<int32_t>(steps * plan.kPack + kPrefetchRows);
  plan.segment = arena.take<Segment>(taps * ci);
  plan.panels = arena.take<typename Types<T>::Cell>(panels * steps * kLanes);
  plan.bias = arena.take<typename Types<T>::Acc>(panels * kLanes);
  plan.scale = arena.take<typename Types<T>::Acc>(panels * kLanes);
  if (Types<T>::kInteger) {
    plan.start = arena.take<int32_t>(panels * kLanes);
    plan.factor = arena.take<typename Types<T>::Acc>(panels * kLanes);
  }
  plan.pre_scale = arena.take<typename Types<T>::Acc>(ci);
  plan.pre_shift = arena.take<typename Types<T>::Acc>(ci);
  plan.panel = arena.take<const typename Types<T>::Cell*>(panels);
  plan.panel_out = arena.take<int64_t>(panels);
  return plan;
}

// How many panels the next tile takes: two, or three where that leaves no single one; three and
// fewer pixels where those of a tile collide in L1. Fewer if their weights would not stay in L2.
template <class T>
int tile_panels(const Micro<T>& micro, int64_t left, int64_t panel_bytes, bool collide) {
  for (int v : {3, 2}) {
    const bool fits = micro.max_pixels[v] > 0 && v * panel_bytes <= kGroupBytes;
    const bool three = left >= 3 && (collide ? left != 4 : left % 2 == 1);
    if (fits && (v == 3 ? three : left >= 2)) return v;
  }
  return 1;
}

}  // namespace ddi
