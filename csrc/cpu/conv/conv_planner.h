// Makes the conv plans of one call (conv_plan.h), each once for all samples with equal masks that a
// task meets in a row.
//
// Weights are compressed only where they must be. If the open outputs are whole panels, as with
// group sizes that are multiples of kLanes, tiles read the packed panels themselves: they jump from
// one run of open inputs to the next, or, if runs are short, find every row through a list. Else
// each compact panel is gathered from the packed ones.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "conv_plan.h"

namespace ddi {

constexpr int64_t kWinogradBytes = 256 * 1024;  // transformed weights that are near
// Pairs of open channels for an open channel from which on transforms pay, by m - 2.
constexpr int64_t kWinogradGain[3] = {9, 1, 5};

// The cut of an image that leaves the fewest lanes empty; strips must gain what their shuffling
// costs. Tiles have `tile_rows` rows of outputs.
inline int choose_strips(int64_t open, int64_t out_h, int64_t tile_rows, int max_strips) {
  const auto cost = [&](int strips) {
    return ceil_div(open, kLanes / strips) * ceil_div(ceil_div(out_h, strips), tile_rows);
  };
  int best = 1;
  if (open > kMaxStripChannels) return best;
  for (int strips = 2; strips <= max_strips; strips *= 2) {
    if (5 * cost(strips) < 4 * cost(best)) best = strips;
  }
  return best;
}

// Channels [first, first + channels) of a row of group bits.
inline ChannelSet list_channels(const uint8_t* open, int64_t first, int64_t channels,
                                int64_t group_size, int32_t* index, uint16_t* bits) {
  std::memset(bits, 0, static_cast<size_t>(ceil_div(channels, kLanes)) * sizeof(uint16_t));
  if (open == nullptr) group_size = first + channels;  // one group
  // Without branches on the bits, which nothing could predict: closed groups are overwritten.
  int64_t count = 0, group = first / group_size, end;
  for (int64_t c = 0; c < channels; c = end, ++group) {
    end = std::min((group + 1) * group_size - first, channels);
    const bool is_open = open == nullptr || open[group] != 0;
    for (int64_t i = c; i < end; ++i) index[count + i - c] = static_cast<int32_t>(i);
    count += is_open ? end - c : 0;
    for (int64_t i = c, next; i < end; i = next) {
      next = std::min((i / kLanes + 1) * kLanes, end);
      const uint32_t run = ((1u << (next - i)) - 1u) << (i % kLanes);
      bits[i / kLanes] = static_cast<uint16_t>(bits[i / kLanes] | (is_open ? run : 0u));
    }
  }
  return {channels, count, index, bits};
}

// Compares the bits of samples a and b.
inline int compare_bits(const uint8_t* open, int64_t groups, int64_t a, int64_t b) {
  return open == nullptr ? 0 : std::memcmp(open + a * groups, open + b * groups, groups);
}

template <class T>
class ConvPlanner {
  using Cell = typename Types<T>::Cell;
  using Acc = typename Types<T>::Acc;
  static constexpr int kPack = Types<T>::kPack;

 public:
  ConvPlanner(const ConvLink<T>& link, int64_t min_row_blocks)
      : link_(link),
        a_(link.conv),
        s_(a_.shape),
        ci_(s_.group_ci()),
        co_(s_.group_co()),
        taps_(s_.kh * s_.kw),
        in_groups_(ceil_div(s_.ci, a_.in_group_size)),
        out_groups_(ceil_div(s_.co, a_.out_group_size)),
        min_row_blocks_(min_row_blocks) {}

  // Readies a conv plan for one convolution group of a sample. What follows from the masks stays
  // valid from one sample to the next if both have the same.
  void plan(ConvPlan<T>& p, int64_t n, int64_t group) const {
    const bool same = p.sample >= 0 && p.group == group &&
                      compare_bits(a_.in_open, in_groups_, p.sample, n) == 0 &&
                      compare_bits(a_.out_open, out_groups_, p.sample, n) == 0;
    const bool same_epilogue = same && a_.scale == nullptr;
    p.sample = n;
    p.group = group;
    if (!same) {
      list(p);
      choose_transform(p);
      choose_weights(p);
      plan_input(p);
      plan_rows(p);
      plan_panels(p);
      plan_row_blocks(p);
    }
    if (!same_epilogue) plan_epilogue(p);
  }

  // A panel of the weights that the sample takes.
  const Cell* packed(const ConvPlan<T>& p, int64_t panel) const {
    const int64_t cells = ceil_div(ci_, kPack) * kLanes, panels = ceil_div(co_, kLanes);
    const Cell* first = a_.packed;
    if (p.winograd > 0) {
      first += panels * taps_ * cells;
      for (const int m : winograd_forms(s_.kh, s_.kw).m) {
        if (m == p.winograd) break;
        if (has_winograd(m, co_, ci_)) first += panels * winograd_taps(m) * cells;
      }
    }
    return first + (p.group * panels + panel) * p.taps * cells;
  }

  // Gathers one compact panel, and sums it up where that is needed.
  void ready_panel(const ConvPlan<T>& p, int64_t panel) const {
    if (p.compress) compress_panel(p, panel);
    if constexpr (Types<T>::kInteger) {
      micro<T>().sum_weights(p.panel[panel], p.segment, p.segments, p.start + panel * kLanes);
    }
  }

 private:
  void compress_panel(const ConvPlan<T>& p, int64_t panel) const {
    const int64_t width = kLanes / p.strips, first = panel * width;
    const int64_t last = std::min(first + width, p.out.open);
    PanelMove<T> moves[kLanes];
    int n_moves = 0;
    int64_t source = -1;
    for (int64_t j = first; j < last; ++j) {
      const int64_t c = p.out_index[j];
      if (c / kLanes != source) {
        source = c / kLanes;
        moves[n_moves] = {packed(p, source), 0, {}};
        ++n_moves;
      }
      PanelMove<T>& move = moves[n_moves - 1];
      for (int64_t s = 0; s < p.strips; ++s) {
        const int64_t lane = (j - first) * p.strips + s;
        move.mask |= 1u << lane;
        move.from[lane] = static_cast<int32_t>(c % kLanes);
      }
    }
    micro<T>().compress_panel(moves, n_moves, p.row, p.steps, p.panels + panel * p.steps * kLanes);
  }

  void list(ConvPlan<T>& p) const {
    const uint8_t* in = a_.in_open == nullptr ? nullptr : a_.in_open + p.sample * in_groups_;
    const uint8_t* out = a_.out_open == nullptr ? nullptr : a_.out_open + p.sample * out_groups_;
    p.in = list_channels(in, p.group * ci_, ci_, a_.in_group_size, p.in_index, p.in_bits);
    p.out = list_channels(out, p.group * co_, co_, a_.out_group_size, p.out_index, p.out_bits);
    if (a_.pre_scale != nullptr) {
      for (int64_t i = 0; i < p.in.open; ++i) {
        p.pre_scale[i] = a_.pre_scale[p.group * ci_ + p.in_index[i]];
        p.pre_shift[i] = a_.pre_shift[p.group * ci_ + p.in_index[i]];
      }
    }
    p.whole_panels = true;
    for (int64_t k = 0; k < ceil_div(co_, kLanes); ++k) {
      const int lanes = static_cast<int>(std::min<int64_t>(co_ - k * kLanes, kLanes));
      p.whole_panels &= p.out_bits[k] == 0 || p.out_bits[k] == (1u << lanes) - 1u;
    }
  }

  // Winograd's transform, where it pays: it costs so much a tile for every open channel, in or out,
  // and saves so much for every pair of them; and the larger weights must be read for enough tiles
  // while they are in cache: those of all samples if all read the same weights. Factors as measured
  // (docs/winograd.md).
  void choose_transform(ConvPlan<T>& p) const {
    p.winograd = 0;
    p.taps = taps_;
    p.phases = 1;
    if (!s_.winograd || s_.dilation_h != 1 || s_.dilation_w != 1) return;
    const int64_t pairs = p.in.open * p.out.open, channels = p.in.open + p.out.open;
    const bool shared = p.whole_panels && p.in.open == ci_;
    for (const int m : winograd_forms(s_.kh, s_.kw).m) {
      if (!has_winograd(m, co_, ci_)) continue;
      const int64_t stride = winograd_stride(m), numel = winograd_taps(m) * ci_ * co_;
      const bool far = numel * static_cast<int64_t>(sizeof(Cell)) > kWinogradBytes;
      const int64_t tiles = ceil_div(s_.out_h(), m) * ceil_div(s_.out_w(), m);
      const int64_t least = far && !p.whole_panels ? 32 : 16;
      const bool enough = (shared ? s_.n * tiles : tiles) >= least;
      if (s_.stride_h != stride || s_.stride_w != stride || !enough) continue;
      if (pairs <= kWinogradGain[m - 2] * channels) continue;
      // Phases are told apart by where a channel lies: all are there.
      if (winograd_phases(m) > 1 && (p.in.open < ci_ || link_.from_interior)) continue;
      p.winograd = m;
      p.taps = winograd_taps(m);
      p.phases = winograd_phases(m);
      return;
    }
  }

  // A list costs a load a step, which tiles of one panel have no time for: there compressing once
  // is cheaper.
  void choose_weights(ConvPlan<T>& p) const {
    p.runs = 0;
    bool whole_cells = true;  // runs do not begin or end inside a cell
    int32_t end = -1;         // of the run so far
    for (int64_t i = 0; i < p.in.open; ++i) {
      const int32_t c = p.in_index[i];
      const bool begins = c != end;
      p.runs += begins;
      whole_cells &= !begins || (c % kPack == 0 && (i == 0 || end % kPack == 0));
      end = c + 1;
    }
    whole_cells &= p.in.open == 0 || end % kPack == 0 || end == ci_;
    // A kernel of few taps does not pay for interleaving an interior.
    const bool in_place = link_.from_interior && taps_ < 4;
    const int most = in_place || p.phases > 1 ? 1 : micro<T>().max_strips;
    p.strips = choose_strips(p.out.open, s_.out_h(), std::max(p.winograd, 1), most);
    const bool short_runs = p.in.open < ci_ && p.in.open < kLanes / 2 * p.runs;
    const bool can_list = kPack == 1 && p.out.open > kLanes;
    p.compress = !p.whole_panels || p.strips > 1 || !whole_cells || (short_runs && !can_list);
    p.listed = short_runs && !p.compress;
  }

  // The inputs as tiles read them: x itself where nothing is closed or padded, else a compact copy.
  // Stretches of the reduction that are contiguous become one segment.
  void plan_input(ConvPlan<T>& p) const {
    p.cells = ceil_div(p.in.open, kPack);
    const bool plain = std::is_same<T, Cell>::value && s_.pad_h == 0 && s_.pad_w == 0 &&
                       a_.x_stride[1] == 1 && p.strips == 1 && p.phases == 1 && p.in.open == ci_ &&
                       a_.pre_scale == nullptr;
    p.direct_in = plain || (link_.from_interior && p.strips == 1);
    p.elements = p.cells * p.strips * p.phases;
    p.pixel_stride = p.elements;
    if (link_.from_interior) {
      p.pixel_stride = p.from_stride * p.strips;
    } else if (plain) {
      p.pixel_stride = a_.x_stride[3];
    }
    const bool in_x = plain && !link_.from_interior;
    const int64_t columns = s_.w + 2 * s_.pad_w;
    p.row_stride = (p.phases > 1 ? ceil_div(columns, 2) : columns) * p.pixel_stride;
    if (in_x) p.row_stride = a_.x_stride[2];
    const int64_t step = s_.stride_w * p.pixel_stride * static_cast<int64_t>(sizeof(Cell));
    p.collide = p.winograd == 0 && step % kWayBytes == 0;
    p.steps = p.taps * p.cells;
    p.segments = 0;
    Segment end = {-1, 0, -1};  // where the next step would continue the last segment
    const bool by_run = !p.compress && !p.listed;
    const int64_t packed_cells = by_run ? ceil_div(ci_, kPack) : p.cells;
    // The products of a position are those of a 1x1 kernel, and the same for all positions.
    const int64_t taps = p.winograd > 0 ? 1 : taps_;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t ky = tap / s_.kw * s_.dilation_h, kx = tap % s_.kw * s_.dilation_w;
      for (int64_t i = 0, next; i < p.in.open; i = next) {
        next = by_run ? i + 1 : p.in.open;
        while (next < p.in.open && p.in_index[next] == p.in_index[next - 1] + 1) ++next;
        const int64_t first = i / kPack, length = ceil_div(next, kPack) - first;
        const int64_t offset = ky * p.row_stride + kx * p.pixel_stride + first * p.strips;
        const int64_t row = tap * packed_cells + (by_run ? p.in_index[i] / kPack : first);
        if (offset != end.offset || row != end.row) p.segment[p.segments++] = {offset, 0, row};
        p.segment[p.segments - 1].length += length * p.phases;
        end = {offset + length * p.strips, 0, row + length};
      }
    }
  }

  void plan_rows(ConvPlan<T>& p) const {
    int32_t* row = p.row;
    const int64_t tap_channels = round_up(ci_, kPack);
    for (int64_t tap = 0; tap < p.taps; ++tap) {
      for (int64_t i = 0; i < p.in.open; ++i) {
        *row++ = static_cast<int32_t>(tap * tap_channels) + p.in_index[i];
      }
      for (int64_t i = p.in.open; i < p.cells * kPack; ++i) *row++ = -1;
    }
    std::fill(row, row + kPrefetchRows, p.steps > 0 ? p.row[0] : 0);
  }

  void plan_panels(ConvPlan<T>& p) const {
    p.n_panels = ceil_div(p.out.open, kLanes / p.strips);
    p.ready = !p.compress && !Types<T>::kInteger;
    p.direct_out = std::is_same<Acc, typename Types<T>::Out>::value && p.whole_panels &&
                   p.strips == 1 && a_.channels_last && !link_.to_interior && a_.y != nullptr;
    p.to_stride = p.n_panels * kLanes / p.strips / kPack;
    for (int64_t k = 0; k < p.n_panels; ++k) {
      const int64_t source = p.whole_panels && p.strips == 1 ? p.out_index[k * kLanes] / kLanes : k;
      p.panel[k] = p.compress ? p.panels + k * p.steps * kLanes : packed(p, source);
      p.panel_out[k] = (p.direct_out ? source : k) * kLanes;
    }
  }

  void plan_row_blocks(ConvPlan<T>& p) const {
    const int64_t out_h = s_.out_h();
    p.strip_rows = ceil_div(out_h, p.strips);
    // What passes are repeated over: of x itself only pixels under the kernel; not y, which is
    // written once.
    const int64_t in_row =
        p.direct_in ? std::min(s_.w, s_.out_w() * s_.kw) * p.cells : p.row_stride;
    int64_t in_rows = p.direct_in ? std::min(s_.stride_h, s_.kh) : s_.stride_h;
    if (p.phases > 1) in_rows = 1;
    const int64_t out_row = p.direct_out ? 0 : s_.out_w() * p.n_panels * kLanes;
    const int64_t halo = p.winograd > 0 ? winograd_side(p.winograd) - p.winograd
                                        : std::max<int64_t>(s_.window_h() - s_.stride_h, 0);
    const int64_t per_row = std::max<int64_t>(in_rows * in_row + out_row, 1);
    const int64_t budget = kRowBlockBytes / static_cast<int64_t>(sizeof(Cell)) - halo * in_row;
    const int64_t fit = std::max<int64_t>(std::min(budget / per_row, p.strip_rows), 1);
    // As many for every task that shares them.
    p.row_blocks = std::min(round_up(ceil_div(p.strip_rows, fit), min_row_blocks_), p.strip_rows);
    p.block_rows = round_up(ceil_div(p.strip_rows, p.row_blocks), std::max(p.winograd, 1));
    p.row_blocks = ceil_div(p.strip_rows, p.block_rows);
  }

  void plan_epilogue(ConvPlan<T>& p) const {
    const int64_t first = p.group * co_, width = p.n_panels * kLanes / p.strips;
    const Acc* scale = a_.scale == nullptr ? nullptr : a_.scale + p.sample * out_groups_;
    std::fill_n(p.bias, p.n_panels * kLanes, Acc(0));
    if (Types<T>::kInteger) std::fill_n(p.factor, p.n_panels * kLanes, Acc(0));
    if (scale != nullptr) std::fill_n(p.scale, p.n_panels * kLanes, Acc(0));
    for (int64_t j = 0; j < std::min(width, p.out.open); ++j) {
      const int64_t c = first + p.out_index[j];
      for (int64_t s = j * p.strips; s < (j + 1) * p.strips; ++s) {
        if (Types<T>::kInteger) p.factor[s] = a_.factor[c];
        if (a_.bias != nullptr) p.bias[s] = a_.bias[c];
        if (scale != nullptr) p.scale[s] = scale[c / a_.out_group_size];
      }
    }
  }

  const ConvLink<T>& link_;
  const GatedConv2d<T>& a_;
  const Conv2dShape& s_;
  const int64_t ci_, co_, taps_, in_groups_, out_groups_, min_row_blocks_;
};

}  // namespace ddi
