// A row block by Winograd's transform (winograd.h), from the same compact inputs and to the same
// places as the register tiles that sum over taps. Open channels cost what they cost there: a
// position is a product of [tiles][open inputs] with the weights of [open inputs][open outputs],
// walked by the same register tile, with its lists, runs and strips.
//
// Blocking: a few tiles at a time, so that their inputs and products at all positions stay in L2
// and those of one position in L1, while the weights pass by. Those are fetched some positions
// ahead: a panel of a position is too short for the hardware to notice where it goes on.
#pragma once

#include <algorithm>
#include <type_traits>

#include "base/arena.h"
#include "conv_plan.h"
#include "micro/micro_winograd.h"

namespace ddi {

constexpr int64_t kWinogradTiles = 16;  // transformed at a time
constexpr int64_t kAheadLines = 128;    // of weights, between those in use and those fetched

template <class T>
constexpr bool kHasWinograd = std::is_same<typename Types<T>::Cell, float>::value;

// Stretches of one position; an odd number of lines apart, so that a tile's positions do not all
// fall into the same few sets of a cache.
inline int64_t position_stride(int64_t tile_stride) {
  return (kWinogradTiles * tile_stride / kLanes | 1) * kLanes;
}

// Inputs and products of kWinogradTiles tiles at all positions.
struct WinogradRoom {
  WinogradRoom() = default;
  WinogradRoom(const Conv2dShape& s, int64_t max_strips, Arena& arena) {
    if (!s.winograd) return;
    const int64_t lanes = max_panels(s.co, static_cast<int>(max_strips)) * kLanes;
    int64_t in_numel = 0, out_numel = 0;
    for (const int m : winograd_forms(s.kh, s.kw).m) {
      if (!has_winograd(m, s.co, s.ci)) continue;
      const int64_t elements = s.ci * std::max(max_strips, winograd_phases(m));
      in_numel =
          std::max(in_numel, winograd_positions(m) * position_stride(round_up(elements, kLanes)));
      out_numel = std::max(out_numel, winograd_positions(m) * position_stride(lanes));
    }
    in = arena.take<float>(in_numel);
    out = arena.take<float>(out_numel);
  }

  float *in = nullptr, *out = nullptr;
};

template <class T>
class WinogradRowBlock {
 public:
  WinogradRowBlock(const ConvPlan<T>& p, const GatedConv2d<T>& args, const RowBlockView<T>& view,
                   const WinogradRoom& room)
      : p_(p),
        view_(view),
        room_(room),
        micro_(micro<T>()),
        m_(p.winograd),
        side_(winograd_side(p.winograd)),
        out_w_(args.shape.out_w()),
        columns_(ceil_div(out_w_, m_)),
        in_tile_(round_up(p.elements, kLanes)),
        out_tile_(p.n_panels * kLanes),
        position_rows_((p.compress ? p.cells : args.shape.ci) * p.phases * kLanes),
        ahead_(std::max<int64_t>(
            kAheadLines / std::max<int64_t>(p.n_panels * p.cells * p.phases, 1), 1)),
        scaled_(args.scale != nullptr),
        last_lanes_(p.last_lanes(args.shape.co, p.n_panels - 1)) {}

  void run() const {
    const int64_t across = ceil_div(columns_, ceil_div(columns_, kWinogradTiles));
    const int64_t down = std::max<int64_t>(kWinogradTiles / columns_, 1);
    const int64_t tile_rows = ceil_div(view_.rows, m_);
    for (int64_t y = 0; y < tile_rows; y += down) {
      for (int64_t x = 0; x < columns_; x += across) {
        run_tiles(y, std::min(down, tile_rows - y), x, std::min(across, columns_ - x));
      }
    }
  }

 private:
  // Tiles [y, y + down) x [x, x + across).
  void run_tiles(int64_t y, int64_t down, int64_t x, int64_t across) const {
    for (int64_t r = 0; r < down; ++r) inputs(y + r, x, across, r * across);
    products(down * across);
    for (int64_t r = 0; r < down; ++r) outputs(y + r, x, across, r * across);
  }

  void inputs(int64_t y, int64_t x, int64_t tiles, int64_t first) const {
    WinogradInput t;
    const int64_t more = side_ - m_;  // inputs than outputs
    for (int64_t i = 0; i < side_; ++i) {
      const int64_t row = std::min(y * m_ + i, view_.rows + more - 1);
      t.row[i] = view_.in + row * p_.row_stride + x * m_ * p_.pixel_stride;
    }
    t.columns = out_w_ + more - x * m_;
    t.pixel_stride = p_.pixel_stride;
    t.tiles = tiles;
    t.elements = p_.elements;
    t.out = room_.in + first * in_tile_;
    t.position_stride = position_stride(in_tile_);
    t.tile_stride = in_tile_;
    winograd_micro().input[m_ - 2](t);
  }

  void outputs(int64_t y, int64_t x, int64_t tiles, int64_t first) const {
    const int64_t at = y * m_ * view_.out_row + x * m_ * view_.out_stride;
    WinogradOutput t;
    t.in = room_.out + first * out_tile_;
    t.position_stride = position_stride(out_tile_);
    t.tile_stride = out_tile_;
    t.tiles = tiles;
    t.panels = p_.n_panels;
    t.rows = view_.rows - y * m_;
    t.columns = out_w_ - x * m_;
    t.bias = p_.bias;
    t.scale = scaled_ ? p_.scale : nullptr;
    t.residual = view_.residual == nullptr ? nullptr : view_.residual + at;
    t.out = view_.out + at;
    t.row_stride = view_.out_row;
    t.pixel_stride = view_.out_stride;
    t.out_at = p_.panel_out;
    t.last_lanes = last_lanes_;
    t.relu = view_.relu;
    winograd_micro().output[m_ - 2](t);
  }

  // How the tiles of a position are cut into register tiles of so many panels: found once for all
  // positions, because it takes divisions.
  struct Cut {
    int runs = 0;
    int first[kWinogradTiles + 1];

    void make(int64_t tiles, int most) {
      runs = static_cast<int>(ceil_div(tiles, most));
      for (int r = 0; r <= runs; ++r) first[r] = static_cast<int>(r * tiles / runs);
    }
  };

  // The products of so many tiles at every position.
  void products(int64_t tiles) const {
    ConvTile<T> tile = {};
    tile.pixel_stride = in_tile_;
    tile.segment = p_.segment;
    tile.segments = p_.segments;
    tile.row = p_.listed ? p_.row : nullptr;
    tile.ahead_row = p_.row;
    tile.out_stride = out_tile_;
    tile.last_lanes = kLanes;
    for (int v = 0; v < kMaxPanels; ++v) tile.out_at[v] = v * kLanes;
    Cut cuts[kMaxPanels + 1];
    const int64_t positions = side_ * side_;
    const float* in = room_.in;
    float* out = room_.out;
    for (int64_t i = 0; i < positions; ++i) {
      int width;
      for (int64_t panel = 0; panel < p_.n_panels; panel += width) {
        width = tile_panels(micro_, p_.n_panels - panel, 0, p_.collide);
        for (int v = 0; v < width; ++v) {
          tile.weight[v] = p_.panel[panel + v] + i * position_rows_;
        }
        Cut& cut = cuts[width];
        if (cut.runs == 0) cut.make(tiles, micro_.max_pixels[width]);
        const bool fetch = !p_.compress && i + ahead_ < positions;
        position(tile, in, out + panel * kLanes, cut, width, fetch ? ahead_ * position_rows_ : -1);
      }
      in += position_stride(in_tile_);
      out += position_stride(out_tile_);
    }
  }

  // Each register tile fetches one panel `ahead` floats from those in use; none if negative.
  void position(ConvTile<T>& tile, const float* in, float* out, const Cut& cut, int width,
                int64_t ahead) const {
    for (int r = 0; r < cut.runs; ++r) {
      const int first = cut.first[r], count = cut.first[r + 1] - first, half = (count + 1) / 2;
      tile.in[0] = in + first * in_tile_;
      tile.in[1] = tile.in[0] + half * in_tile_;
      tile.out[0] = out + first * out_tile_;
      tile.out[1] = tile.out[0] + half * out_tile_;
      tile.ahead = p_.listed ? tile.weight[0] : nullptr;
      if (ahead >= 0) tile.ahead = tile.weight[std::min(r, width - 1)] + ahead;
      micro_.conv_tile(tile, count, width, p_.strips);
    }
  }

  const ConvPlan<T>& p_;
  const RowBlockView<T>& view_;
  const WinogradRoom& room_;
  const Micro<T>& micro_;
  const int64_t m_, side_;            // outputs and inputs of a tile, along one axis
  const int64_t out_w_, columns_;     // pixels and tiles of a row
  const int64_t in_tile_, out_tile_;  // floats of a tile at one position
  const int64_t position_rows_;       // floats of a panel from position to position
  const int64_t ahead_;               // positions
  const bool scaled_;
  const int last_lanes_;
};

}  // namespace ddi
