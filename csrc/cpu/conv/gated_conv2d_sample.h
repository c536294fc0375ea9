// One sample (and one convolution group) of gated_conv2d, as its conv plan says: passes over row
// blocks, each of which copies the open inputs of the row block into a zero-haloed [row][column]
// [channel] buffer, runs the register tiles, and expands the compact result.
//
// Blocking: a row block (input and result) is sized to stay in L2 next to the weight panels of one
// tile; these pass over it one after the other, so that a panel is read from beyond L2 once per row
// block, and from L2 once per tile, which a tile of eight or more pixels hides. Every output
// element is one sum of products over its own inputs in a fixed order, so how rows, tiles and
// samples are divided cannot change a bit of the result.
#pragma once

#include "conv_input.h"
#include "conv_planner.h"
#include "conv_prefetch.h"
#include "conv_result.h"
#include "conv_room.h"
#include "winograd_row_block.h"

namespace ddi {

constexpr int64_t kAheadBytes = 256 * 1024;  // weights of a sample that stay in L2 by themselves

template <class T>
class SampleConv {
  using Cell = typename Types<T>::Cell;
  using Acc = typename Types<T>::Acc;
  using Out = typename Types<T>::Out;
  static constexpr bool kSameIn = std::is_same<T, Cell>::value;
  static constexpr bool kSameOut = std::is_same<Acc, Out>::value;
  static constexpr bool kSameInterior = std::is_same<Acc, Cell>::value;

 public:
  SampleConv(const ConvLink<T>& link, const ConvPlanner<T>& planner)
      : link_(link),
        a_(link.conv),
        s_(a_.shape),
        planner_(planner),
        input_(link),
        micro_(micro<T>()),
        out_h_(s_.out_h()),
        out_w_(s_.out_w()),
        ci_(s_.group_ci()),
        co_(s_.group_co()) {}

  // One row block, from the copy of its inputs to the finished result. Panels that are not ready
  // are compressed just before they are used, while they are in cache. Meanwhile the inputs of
  // `next` are fetched.
  void run_row_block(const ConvPlan<T>& p, int64_t row_block, Upcoming<T> next,
                     const RowBlockRoom<T>& room) const {
    const int64_t y0 = row_block * p.block_rows, y1 = std::min(y0 + p.block_rows, p.strip_rows);
    if (y0 >= y1) return;
    if (link_.to_interior) clear_halo(p, row_block);
    if (p.out.open > 0) {
      if (!p.direct_in) input_.copy(p, y0, y1, room);
      const RowBlockView<T> v = view(p, y0, y1, room);
      if (p.winograd == 0) {
        run_tiles(p, v, row_block == 0, next);
      } else if constexpr (kHasWinograd<T>) {
        for (int64_t k = 0; k < p.n_panels && !p.ready; ++k) planner_.ready_panel(p, k);
        WinogradRowBlock<T>(p, a_, v, room.winograd).run();
      }
    }
    if (link_.to_interior) {
      if (!writes_interior(p) && p.out.open > 0) copy_to_interior(p, y0, y1, room);
    } else if (!p.direct_out) {
      expand(p, y0, y1, room);
    } else if (p.out.open < co_ && !a_.leave_closed) {
      const int64_t at = y_offset(p, y0);
      micro_.fill_closed((y1 - y0) * out_w_, p.out, residual(at), a_.relu, a_.out_stride(),
                         a_.y + at);
    }
  }

  // Inputs of a row block of a sample; `p` says how images are cut.
  Upcoming<T> upcoming(const ConvPlan<T>& p, int64_t sample, int64_t row_block) const {
    if (p.group > 0 || link_.from_interior) return {nullptr, nullptr, s_.ci, nullptr, 1};
    const T* x = a_.x + sample * a_.x_stride[0];
    const int64_t row = a_.x_stride[2], step = p.block_rows * s_.stride_h;
    const bool plain = a_.x_stride[1] == 1 && a_.x_stride[3] == s_.ci && p.strips == 1;
    if (!plain) return {x, x, s_.ci, nullptr, 1};
    const int64_t first = std::min(row_block * step, s_.h), last = std::min(first + step, s_.h);
    const uint8_t* open =
        a_.in_open == nullptr ? nullptr : a_.in_open + sample * ceil_div(s_.ci, a_.in_group_size);
    return {x + first * row, x + last * row, s_.ci, open, a_.in_group_size};
  }

 private:
  int64_t y_offset(const ConvPlan<T>& p, int64_t row) const {
    const int64_t first = p.sample * a_.out_sample_stride(), channel = p.group * co_;
    return a_.channels_last ? first + row * out_w_ * a_.out_stride() + channel
                            : first + channel * a_.out_stride() + row * out_w_;
  }

  const Out* residual(int64_t at) const {
    return a_.residual == nullptr ? nullptr : a_.residual + at;
  }

  const T* x_at(const ConvPlan<T>& p, int64_t row) const {
    return a_.x + p.sample * a_.x_stride[0] + p.group * ci_ * a_.x_stride[1] + row * a_.x_stride[2];
  }

  static int64_t panel_bytes(const ConvPlan<T>& p) {
    return p.steps * kLanes * static_cast<int64_t>(sizeof(Cell));
  }

  RowBlockView<T> view(const ConvPlan<T>& p, int64_t y0, int64_t y1,
                       const RowBlockRoom<T>& room) const {
    RowBlockView<T> v = {};
    v.rows = y1 - y0;
    v.out_stride = p.direct_out ? a_.out_stride() : p.n_panels * kLanes;
    v.out_row = out_w_ * v.out_stride;
    v.relu = (p.direct_out || link_.to_interior) && a_.relu;
    v.in = room.in;
    v.out = room.out;
    if (link_.from_interior && p.direct_in) v.in = p.from + y0 * s_.stride_h * p.row_stride;
    if constexpr (kSameInterior) {
      if (writes_interior(p)) {
        v.out_row += 2 * link_.halo_w * p.to_stride;
        v.out = interior_row(p, y0);
      }
    }
    if constexpr (kSameIn) {
      if (p.direct_in && !link_.from_interior) v.in = x_at(p, y0 * s_.stride_h);
    }
    if constexpr (kSameOut) {
      if (p.direct_out) v.out = a_.y + y_offset(p, y0);
      if (p.direct_out) v.residual = residual(y_offset(p, y0));
    }
    return v;
  }

  void run_tiles(const ConvPlan<T>& p, const RowBlockView<T>& v, bool first,
                 Upcoming<T>& next) const {
    ConvTile<T> tile = {};
    tile.pixel_stride = s_.stride_w * p.pixel_stride;
    tile.segment = p.segment;
    tile.segments = p.segments;
    tile.row = p.listed ? p.row : nullptr;
    tile.ahead_row = p.row;
    tile.out_stride = v.out_stride;
    tile.relu = v.relu;
    int width;
    Ahead<T> ahead;
    for (int64_t panel = 0; panel < p.n_panels; panel += width) {
      width = tile_panels(micro_, p.n_panels - panel, panel_bytes(p), p.collide);
      for (int i = 0; i < width; ++i) {
        if (!p.ready) planner_.ready_panel(p, panel + i);
        tile.weight[i] = p.panel[panel + i];
        tile.out_at[i] = p.panel_out[panel + i];
      }
      if (Types<T>::kInteger) {
        tile.start = p.start + panel * kLanes;
        tile.factor = p.factor + panel * kLanes;
      }
      tile.bias = p.bias + panel * kLanes;
      tile.scale = a_.scale == nullptr ? nullptr : p.scale + panel * kLanes;
      tile.last_lanes = p.last_lanes(co_, panel + width - 1);
      fetch_ahead(p, panel + width, first, ahead);
      run_panels(p, tile, width, v, ahead, next);
    }
  }

  // What the tiles of the panels from `panel` on will read, unless all weights have come into L2
  // with the first row block and stay there.
  void fetch_ahead(const ConvPlan<T>& p, int64_t panel, bool first, Ahead<T>& ahead) const {
    ahead.clear();
    const bool stay = !first && p.n_panels * panel_bytes(p) <= kAheadBytes;
    if (panel >= p.n_panels || stay || (p.ready && p.compress)) return;
    const int64_t end = panel + tile_panels(micro_, p.n_panels - panel, panel_bytes(p), p.collide);
    if (!p.compress) {
      for (; panel < end; ++panel) ahead.add(p.panel[panel]);
    } else if (p.strips == 1) {
      const int64_t last = std::min(end * kLanes, p.out.open);
      for (int64_t j = panel * kLanes; j < last; ++j) {
        ahead.add(planner_.packed(p, p.out_index[j] / kLanes));
      }
    }
  }

  // All pixels of a row block with the panels of one tile. Two rows share a tile where they fit.
  void run_panels(const ConvPlan<T>& p, ConvTile<T>& tile, int width, const RowBlockView<T>& v,
                  Ahead<T>& ahead, Upcoming<T>& next) const {
    const int64_t most = micro_.max_pixels[width], in_row = s_.stride_h * p.row_stride;
    // Tiles of a row differ by at most one pixel: a short one would waste what a row saves.
    const int64_t tiles = ceil_div(out_w_, most);
    const int64_t lines = next.per_call(tiles * v.rows);
    for (int64_t y = 0; y < v.rows; ++y) {
      const bool pair = 2 * out_w_ <= most && y + 1 < v.rows;
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t x0 = i * out_w_ / tiles, pixels = (i + 1) * out_w_ / tiles - x0;
        const int64_t first = (pixels + 1) / 2;
        tile.in[0] = v.in + y * in_row + x0 * tile.pixel_stride;
        tile.in[1] = tile.in[0] + (pair ? in_row : first * tile.pixel_stride);
        tile.out[0] = v.out + y * v.out_row + x0 * tile.out_stride;
        tile.out[1] = tile.out[0] + (pair ? v.out_row : first * tile.out_stride);
        if (v.residual != nullptr) {
          tile.residual[0] = v.residual + (tile.out[0] - v.out);
          tile.residual[1] = v.residual + (tile.out[1] - v.out);
        }
        next.fetch(lines);
        tile.ahead = ahead.next();
        if constexpr (kSameIn) {
          // Rows of a list of all channels are neighbouring lines.
          if (tile.ahead == nullptr && lines == 0 && p.in.open == ci_)
            tile.ahead = next.take(p.steps);
        }
        if (tile.ahead == nullptr && p.listed) tile.ahead = tile.weight[0];
        micro_.conv_tile(tile, static_cast<int>(pair ? 2 * pixels : pixels), width, p.strips);
      }
      y += pair;
    }
  }

  // Whether tiles write the interior themselves.
  bool writes_interior(const ConvPlan<T>& p) const {
    return kSameInterior && link_.to_interior && p.strips == 1;
  }

  // First pixel of an output row in the interior that this convolution writes.
  Cell* interior_row(const ConvPlan<T>& p, int64_t y) const {
    const int64_t width = out_w_ + 2 * link_.halo_w;
    return p.to + ((y + link_.halo_h) * width + link_.halo_w) * p.to_stride;
  }

  // The zeros around the interior that belong to a row block: the sides of its rows and, with the
  // first, everything above and below.
  void clear_halo(const ConvPlan<T>& p, int64_t row_block) const {
    const int64_t side = link_.halo_w * p.to_stride, row = out_w_ * p.to_stride + 2 * side;
    for (int64_t s = 0; s < p.strips; ++s) {
      const int64_t first = s * p.strip_rows + row_block * p.block_rows;
      const int64_t end = std::min((s + 1) * p.strip_rows, out_h_);
      for (int64_t y = first; y < std::min(first + p.block_rows, end); ++y) {
        Cell* pixel = interior_row(p, y);
        std::fill(pixel - side, pixel, Types<T>::kZero);
        std::fill(pixel + row - 2 * side, pixel + row - side, Types<T>::kZero);
      }
    }
    if (row_block > 0) return;
    std::fill(p.to, p.to + link_.halo_h * row, Types<T>::kZero);
    Cell* below = interior_row(p, out_h_) - side;
    std::fill(below, below + link_.halo_h * row, Types<T>::kZero);
  }

  // The rows of each strip to where they belong in the interior, as cells.
  void copy_to_interior(const ConvPlan<T>& p, int64_t y0, int64_t y1,
                        const RowBlockRoom<T>& room) const {
    const int64_t row = out_w_ * p.to_stride * Types<T>::kPack, count = (y1 - y0) * row;
    const int64_t strip_stride = round_up(count + kLanes, kLanes);
    const Acc* rows = room.out;
    if (p.strips > 1) {
      micro_.deinterleave(room.out, p.strips, count, strip_stride, room.single_out);
      rows = room.single_out;
    }
    for (int64_t s = 0; s < p.strips; ++s) {
      for (int64_t y = y0; y < y1 && s * p.strip_rows + y < out_h_; ++y) {
        const Acc* src = rows + s * strip_stride + (y - y0) * row;
        Cell* dst = interior_row(p, s * p.strip_rows + y);
        if constexpr (kSameInterior) {
          std::copy(src, src + row, dst);
        } else if constexpr (Types<T>::kPack == 2) {
          round_row(src, row, reinterpret_cast<Out*>(dst));
        }
      }
    }
  }

  // Rounds so many sums to the type of y: whole lanes as pixels of that many open channels.
  void round_row(const Acc* src, int64_t count, Out* dst) const {
    static constexpr int32_t kIndex[kLanes] = {0, 1, 2,  3,  4,  5,  6,  7,
                                               8, 9, 10, 11, 12, 13, 14, 15};
    const int64_t pixels = count / kLanes, rest = count % kLanes;
    const uint16_t whole = 0xffff, some = static_cast<uint16_t>((1u << rest) - 1u);
    const ChannelSet lanes = {kLanes, kLanes, kIndex, &whole}, last = {rest, rest, kIndex, &some};
    micro_.expand_pixels(src, kLanes, pixels, lanes, nullptr, false, kLanes, dst);
    if (rest == 0) return;
    src += pixels * kLanes;
    micro_.expand_pixels(src, kLanes, 1, last, nullptr, false, kLanes, dst + pixels * kLanes);
  }

  // From the compact result of a row block to y.
  void expand(const ConvPlan<T>& p, int64_t y0, int64_t y1, const RowBlockRoom<T>& room) const {
    const int64_t src_stride = p.n_panels * kLanes / p.strips;
    const int64_t count = (y1 - y0) * out_w_ * src_stride;
    const int64_t strip_stride = round_up(count + kLanes, kLanes);
    const Acc* src = room.out;
    if (p.strips > 1 && p.out.open > 0) {
      micro_.deinterleave(room.out, p.strips, count, strip_stride, room.single_out);
      src = room.single_out;
    }
    for (int64_t s = 0; s < p.strips; ++s) {
      const int64_t first = s * p.strip_rows + y0, last = std::min(s * p.strip_rows + y1, out_h_);
      if (first >= last) continue;
      const Result<T> result = {src + s * strip_stride, src_stride, (last - first) * out_w_,
                                y_offset(p, first)};
      write_result(a_, p, result, room.expanded, room.expanded_numel);
    }
  }

  const ConvLink<T>& link_;
  const GatedConv2d<T>& a_;
  const Conv2dShape& s_;
  const ConvPlanner<T>& planner_;
  const ConvInput<T> input_;
  const Micro<T>& micro_;
  const int64_t out_h_, out_w_, ci_, co_;
};

}  // namespace ddi
