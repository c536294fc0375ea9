// One sample of gated_conv2d: list the open channels, compress the packed weights to them (not if
// all are open), then pass over blocks of output rows: copy the open inputs of the block into a
// zero-haloed [row][column][channel] buffer, run the register tiles, expand the compact result.
//
// Blocking: a block of rows (input copy and compact result) is sized to stay in L2 next to one
// group of weight panels; groups pass over the block one after the other, so that a group is read
// from beyond L2 once per block, and from L2 once per tile, which a tile of six or more pixels
// hides. Every output element is one chain of multiply-adds over its own inputs in a fixed order,
// so how rows, tiles and samples are divided cannot change a bit of the result.
#pragma once

#include <algorithm>
#include <cstring>

#include "gated_conv2d.h"
#include "micro.h"

namespace ddi {

constexpr int64_t kBlockBytes = 384 * 1024;  // rows of a block
constexpr int64_t kGroupBytes = 640 * 1024;  // weight panels of a group

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Hands out aligned pieces of the workspace; with a null base it only adds up their sizes.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    char* at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), 64) * 64;
    return reinterpret_cast<T*>(at);
  }

  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// Room for the channels of one sample and what follows from them.
template <class T>
struct Plan {
  int64_t sample = -1;
  ChannelSet in, out;
  int32_t *in_index, *out_index;
  uint16_t *in_bits, *out_bits;
  T *panels, *bias, *scale;
  int64_t* offset;

  const T* weight;
  int64_t panel_stride;
  bool weight_ready;
  bool direct_in;   // tiles read x itself
  bool direct_out;  // tiles write y itself
  int64_t row_stride;
  int64_t segments, segment_length;
  int64_t block_rows, blocks;
};

template <class T>
int64_t block_numel(const Conv2dShape& s) {
  const int64_t in = ((s.kh - 1) * s.dilation_h + 1) * (s.w + 2 * s.pad_w) * s.ci;
  const int64_t out = s.out_w() * ceil_div(s.co, kLanes) * kLanes;
  return std::max<int64_t>(in + out, kBlockBytes / sizeof(T));
}

template <class T>
Plan<T> make_plan(const Conv2dShape& s, Arena& arena) {
  Plan<T> plan = {};
  plan.sample = -1;
  const int64_t co_panels = ceil_div(s.co, kLanes), taps = s.kh * s.kw;
  plan.in_index = arena.take<int32_t>(s.ci);
  plan.out_index = arena.take<int32_t>(s.co);
  plan.in_bits = arena.take<uint16_t>(ceil_div(s.ci, 16));
  plan.out_bits = arena.take<uint16_t>(co_panels);
  // One spare row per panel: compress_panel may write past the end.
  plan.panels = arena.take<T>(co_panels * (taps * s.ci + 1) * kLanes);
  plan.bias = arena.take<T>(co_panels * kLanes);
  plan.scale = arena.take<T>(co_panels * kLanes);
  plan.offset = arena.take<int64_t>(taps);
  return plan;
}

inline ChannelSet list_channels(const uint8_t* open, int64_t channels, int64_t group_size,
                                int32_t* index, uint16_t* bits) {
  std::fill(bits, bits + ceil_div(channels, 16), uint16_t(0));
  int64_t count = 0;
  for (int64_t c = 0; c < channels; ++c) {
    if (open != nullptr && open[c / group_size] == 0) continue;
    index[count++] = static_cast<int32_t>(c);
    bits[c / 16] = static_cast<uint16_t>(bits[c / 16] | (1u << (c % 16)));
  }
  return {channels, count, index, bits};
}

inline bool same_mask(const uint8_t* open, int64_t groups, int64_t a, int64_t b) {
  return open == nullptr || std::memcmp(open + a * groups, open + b * groups, groups) == 0;
}

template <class T>
class SampleConv {
 public:
  SampleConv(const GatedConv2d<T>& args, int64_t min_blocks)
      : a_(args),
        s_(args.shape),
        micro_(micro<T>()),
        out_h_(s_.out_h()),
        out_w_(s_.out_w()),
        in_groups_(ceil_div(s_.ci, args.in_group_size)),
        out_groups_(ceil_div(s_.co, args.out_group_size)),
        min_blocks_(min_blocks) {}

  // Readies a plan for a sample. Channel lists and compressed weights stay valid from one sample to
  // the next if both have the same masks.
  void plan_sample(Plan<T>& p, int64_t n) const {
    const bool same = p.sample >= 0 && same_mask(a_.in_open, in_groups_, p.sample, n) &&
                      same_mask(a_.out_open, out_groups_, p.sample, n);
    p.sample = n;
    if (!same) plan_channels(p, n);
    for (int64_t j = 0; j < panels(p) * kLanes; ++j) {
      const bool exists = j < p.out.open;
      const int64_t c = exists ? p.out_index[j] : 0;
      p.bias[j] = exists && a_.bias != nullptr ? a_.bias[c] : T(0);
      if (a_.scale != nullptr) {
        p.scale[j] = exists ? a_.scale[n * out_groups_ + c / a_.out_group_size] : T(0);
      }
    }
  }

  int64_t panels(const Plan<T>& p) const { return ceil_div(p.out.open, kLanes); }

  // Compresses one panel: open outputs 16 panel ... as columns, open inputs as rows.
  void compress_panel(const Plan<T>& p, int64_t panel) const {
    const int64_t rows = s_.kh * s_.kw * p.in.open, first = panel * kLanes;
    const int columns = static_cast<int>(std::min<int64_t>(p.out.open - first, kLanes));
    PanelMove<T> moves[kLanes];
    int n_moves = 0;
    int64_t source = -1;
    for (int lane = 0; lane < columns; ++lane) {
      const int64_t c = p.out_index[first + lane];
      if (c / kLanes != source) {
        source = c / kLanes;
        const T* src = a_.packed + source * s_.kh * s_.kw * s_.ci * kLanes;
        moves[n_moves++] = {src, 0, lane};
      }
      moves[n_moves - 1].mask |= 1u << (c % kLanes);
    }
    T* dst = p.panels + panel * p.panel_stride;
    if (columns < kLanes) std::fill(dst, dst + rows * kLanes, T(0));
    micro_.compress_panel(moves, n_moves, s_.kh * s_.kw, p.in, dst);
  }

  // Output rows of one block, from the copy of their inputs to the finished result. With `compress`
  // each group of panels is compressed just before it is used, while it is in cache.
  void run_block(const Plan<T>& p, int64_t block, bool compress, T* room) const {
    const int64_t y0 = block * p.block_rows, y1 = std::min(y0 + p.block_rows, out_h_);
    if (y0 >= y1) return;
    if (p.out.open > 0) {
      const T* in = a_.x + p.sample * a_.x_stride[0] + y0 * s_.stride_h * a_.x_stride[2];
      if (!p.direct_in) {
        const int64_t rows = (y1 - y0 - 1) * s_.stride_h + (s_.kh - 1) * s_.dilation_h + 1;
        for (int64_t r = 0; r < rows; ++r)
          copy_row(p, y0 * s_.stride_h - s_.pad_h + r, room + r * p.row_stride);
        in = room;
        room += rows * p.row_stride;
      }
      run_tiles(p, in, y0, y1, compress, room);
    }
    if (!p.direct_out) expand(p, room, y0, y1);
  }

 private:
  void plan_channels(Plan<T>& p, int64_t n) const {
    const uint8_t* in_open = a_.in_open == nullptr ? nullptr : a_.in_open + n * in_groups_;
    const uint8_t* out_open = a_.out_open == nullptr ? nullptr : a_.out_open + n * out_groups_;
    p.in = list_channels(in_open, s_.ci, a_.in_group_size, p.in_index, p.in_bits);
    p.out = list_channels(out_open, s_.co, a_.out_group_size, p.out_index, p.out_bits);
    const bool all_in = p.in.open == s_.ci, all_out = p.out.open == s_.co;
    p.weight_ready = all_in && all_out;
    p.weight = p.weight_ready ? a_.packed : p.panels;
    p.panel_stride = (s_.kh * s_.kw * p.in.open + (p.weight_ready ? 0 : 1)) * kLanes;
    p.direct_in =
        all_in && s_.pad_h == 0 && s_.pad_w == 0 && a_.x_stride[1] == 1 && a_.x_stride[3] == s_.ci;
    p.direct_out = all_out && a_.channels_last;
    p.row_stride = p.direct_in ? a_.x_stride[2] : (s_.w + 2 * s_.pad_w) * p.in.open;
    plan_segments(p);
    plan_blocks(p);
  }

  // Without horizontal dilation the inputs under a kernel row are one contiguous stretch.
  void plan_segments(Plan<T>& p) const {
    const bool whole_rows = s_.dilation_w == 1;
    const int64_t columns = whole_rows ? 1 : s_.kw;
    p.segments = s_.kh * columns;
    p.segment_length = p.in.open * (whole_rows ? s_.kw : 1);
    for (int64_t i = 0; i < p.segments; ++i) {
      p.offset[i] =
          i / columns * s_.dilation_h * p.row_stride + i % columns * s_.dilation_w * p.in.open;
    }
  }

  void plan_blocks(Plan<T>& p) const {
    const int64_t in_row = p.direct_in ? 0 : p.row_stride;
    const int64_t out_row = p.direct_out ? 0 : out_w_ * panels(p) * kLanes;
    const int64_t halo = (s_.kh - 1) * s_.dilation_h + 1 - s_.stride_h;
    const int64_t per_row = std::max<int64_t>(s_.stride_h * in_row + out_row, 1);
    const int64_t budget = kBlockBytes / static_cast<int64_t>(sizeof(T)) - halo * in_row;
    const int64_t fit = std::max<int64_t>(std::min(budget / per_row, out_h_), 1);
    p.blocks = std::min(std::max(ceil_div(out_h_, fit), min_blocks_), out_h_);
    p.block_rows = ceil_div(out_h_, p.blocks);
  }

  // Row y of the input, open channels only, between zeros for the padding.
  void copy_row(const Plan<T>& p, int64_t y, T* dst) const {
    const int64_t open = p.in.open, side = s_.pad_w * open;
    if (y < 0 || y >= s_.h) {
      std::fill(dst, dst + p.row_stride, T(0));
      return;
    }
    const T* src = a_.x + p.sample * a_.x_stride[0] + y * a_.x_stride[2];
    const int64_t channel = a_.x_stride[1], pixel = a_.x_stride[3];
    std::fill(dst, dst + side, T(0));
    dst += side;
    if (channel == 1 && pixel == s_.ci && open == s_.ci) {
      std::memcpy(dst, src, s_.w * s_.ci * sizeof(T));
    } else if (channel == 1) {
      micro_.compress_pixels(src, pixel, s_.w, p.in, dst);
    } else if (pixel == 1) {
      micro_.gather_planes(src, channel, s_.w, p.in, dst);
    } else {
      for (int64_t x = 0; x < s_.w; ++x) {
        for (int64_t i = 0; i < open; ++i) {
          dst[x * open + i] = src[x * pixel + p.in_index[i] * channel];
        }
      }
    }
    dst += s_.w * open;
    std::fill(dst, dst + side, T(0));
  }

  // How many panels a tile takes: four only where rows are so short that two would not keep the
  // multiply-add units busy, and never more than L2 holds.
  int tile_panels(const Plan<T>& p, int64_t left) const {
    const int64_t panel_bytes = p.panel_stride * static_cast<int64_t>(sizeof(T));
    for (int v : {4, 2}) {
      const int pixels = micro_.tile_pixels[v];
      if (pixels > 0 && v <= left && v * panel_bytes <= kGroupBytes &&
          (v == 2 || out_w_ <= pixels)) {
        return v;
      }
    }
    return 1;
  }

  void run_tiles(const Plan<T>& p, const T* in, int64_t y0, int64_t y1, bool compress,
                 T* room) const {
    const int64_t n_panels = panels(p);
    ConvTile<T> tile = {};
    tile.pixel_stride = s_.stride_w * p.in.open;
    tile.offset = p.offset;
    tile.segments = p.segments;
    tile.segment_length = p.segment_length;
    tile.panel_stride = p.panel_stride;
    tile.out_stride = p.direct_out ? s_.co : n_panels * kLanes;
    tile.relu = p.direct_out && a_.relu;
    const int64_t y_start = (p.sample * out_h_ + y0) * out_w_ * s_.co;
    T* out = p.direct_out ? a_.y + y_start : room;
    const T* residual = p.direct_out && a_.residual != nullptr ? a_.residual + y_start : nullptr;

    int64_t width;
    for (int64_t panel = 0; panel < n_panels; panel += width) {
      width = tile_panels(p, n_panels - panel);
      for (int64_t v = 0; compress && v < width; ++v) compress_panel(p, panel + v);
      tile.weight = p.weight + panel * p.panel_stride;
      tile.bias = p.bias + panel * kLanes;
      tile.scale = a_.scale == nullptr ? nullptr : p.scale + panel * kLanes;
      const bool last = panel + width == n_panels;
      tile.last_lanes =
          p.direct_out && last ? static_cast<int>(s_.co - (n_panels - 1) * kLanes) : kLanes;
      // Tiles of a row differ by at most one pixel: a short one would waste what a row saves.
      const int64_t tiles = ceil_div(out_w_, micro_.tile_pixels[width]);
      for (int64_t y = 0; y < y1 - y0; ++y) {
        for (int64_t i = 0; i < tiles; ++i) {
          const int64_t x0 = i * out_w_ / tiles, x1 = (i + 1) * out_w_ / tiles;
          const int64_t at = (y * out_w_ + x0) * tile.out_stride + panel * kLanes;
          tile.in = in + y * s_.stride_h * p.row_stride + x0 * tile.pixel_stride;
          tile.out = out + at;
          tile.residual = residual == nullptr ? nullptr : residual + at;
          micro_.conv_tile(tile, static_cast<int>(x1 - x0), static_cast<int>(width));
        }
      }
    }
  }

  void expand(const Plan<T>& p, const T* compact, int64_t y0, int64_t y1) const {
    const int64_t pixels = (y1 - y0) * out_w_, plane = out_h_ * out_w_;
    const int64_t src_stride = panels(p) * kLanes;
    const int64_t start = p.sample * plane * s_.co + y0 * out_w_ * (a_.channels_last ? s_.co : 1);
    T* y = a_.y + start;
    const T* residual = a_.residual == nullptr ? nullptr : a_.residual + start;
    if (a_.channels_last) {
      micro_.expand_pixels(compact, src_stride, pixels, p.out, residual, a_.relu, y);
      return;
    }
    micro_.scatter_planes(compact, src_stride, pixels, p.out, plane, residual, a_.relu, y);
    for (int64_t c = 0; c < s_.co; ++c) {
      if ((p.out_bits[c / 16] >> (c % 16)) & 1u) continue;
      T* dst = y + c * plane;
      if (residual == nullptr) {
        std::fill(dst, dst + pixels, T(0));
      } else {
        const T* src = residual + c * plane;
        for (int64_t i = 0; i < pixels; ++i) dst[i] = a_.relu && src[i] < T(0) ? T(0) : src[i];
      }
    }
  }

  const GatedConv2d<T>& a_;
  const Conv2dShape& s_;
  const Micro<T>& micro_;
  const int64_t out_h_, out_w_, in_groups_, out_groups_, min_blocks_;
};

}  // namespace ddi
