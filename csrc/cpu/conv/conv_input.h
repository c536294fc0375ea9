// The inputs of a row block, as register tiles and Winograd's transforms read them: open channels
// only, in [row][column][channel] between zeros for the padding, so that no tile asks where the
// image ends. With strips, or phases of an image, a few rows become one, interleaved.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "conv_plan.h"
#include "conv_room.h"
#include "micro/cells.h"
#include "micro/micro_elementwise.h"

namespace ddi {

// Compact cells from contiguous channels.
template <class T>
void pack_cells(const T* src, int64_t channels, typename Types<T>::Cell* dst) {
  for (int64_t i = 0; i < channels; i += Types<T>::kPack) {
    *dst++ = pack_cell<T>(channels - i, [&](int64_t j) { return src[i + j]; });
  }
}

template <class T>
class ConvInput {
  using Cell = typename Types<T>::Cell;
  static constexpr bool kSameIn = std::is_same<T, Cell>::value;

 public:
  explicit ConvInput(const ConvLink<T>& link)
      : link_(link), a_(link.conv), s_(a_.shape), micro_(micro<T>()), ci_(s_.group_ci()) {}

  // The input rows that output rows [y0, y1) of each strip read, to room.in.
  void copy(const ConvPlan<T>& p, int64_t y0, int64_t y1, const RowBlockRoom<T>& room) const {
    if (p.phases > 1) return copy_phases(p, y0, y1, room);
    if (link_.from_interior) return copy_interior(p, y0, y1, room);
    const int64_t rows = (y1 - y0 - 1) * s_.stride_h + s_.window_h();
    const int64_t top = y0 * s_.stride_h - s_.pad_h;
    for (int64_t r = 0; r < rows; ++r) {
      Cell* dst = room.in + r * p.row_stride;
      if (p.strips == 1) {
        copy_row(p, top + r, dst);
        continue;
      }
      for (int64_t s = 0; s < p.strips; ++s) {
        copy_row(p, top + r + s * p.strip_rows * s_.stride_h, room.single + s * room.single_stride);
      }
      micro_.interleave(room.single, room.single_stride, p.strips, p.row_stride / p.strips, dst);
    }
  }

 private:
  // The same of an interior, for strips.
  void copy_interior(const ConvPlan<T>& p, int64_t y0, int64_t y1,
                     const RowBlockRoom<T>& room) const {
    const int64_t rows = (y1 - y0 - 1) * s_.stride_h + s_.window_h();
    const int64_t row = (s_.w + 2 * s_.pad_w) * p.from_stride, from_rows = s_.h + 2 * s_.pad_h;
    const int64_t step = p.strip_rows * s_.stride_h;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t top = y0 * s_.stride_h + r;
      const Cell* src = p.from + top * row;
      int64_t src_stride = step * row;
      if (top + (p.strips - 1) * step >= from_rows) {  // a last strip that ends early
        for (int64_t s = 0; s < p.strips; ++s) {
          Cell* line = room.single + s * room.single_stride;
          if (top + s * step < from_rows) {
            std::copy_n(src + s * src_stride, row, line);
          } else {
            std::fill_n(line, row, Types<T>::kZero);
          }
        }
        src = room.single;
        src_stride = room.single_stride;
      }
      micro_.interleave(src, src_stride, p.strips, row, room.in + r * p.row_stride);
    }
  }

  // The same, [column phase][channel][row phase] to a pixel: two neighbouring pixels of two rows.
  void copy_phases(const ConvPlan<T>& p, int64_t y0, int64_t y1,
                   const RowBlockRoom<T>& room) const {
    const int64_t rows = y1 - y0 + winograd_side(p.winograd) - p.winograd;
    const int64_t columns = s_.w + 2 * s_.pad_w;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t s = 0; s < 2; ++s) {
        Cell* line = room.single + s * room.single_stride;
        copy_row(p, 2 * (y0 + r) - s_.pad_h + s, line);
        std::fill_n(line + columns * p.cells, p.cells, Types<T>::kZero);  // of an odd number
      }
      micro_.interleave(room.single, room.single_stride, 2, p.row_stride / 2,
                        room.in + r * p.row_stride);
    }
  }

  // Row y of the input, open channels only, between zeros for the padding.
  void copy_row(const ConvPlan<T>& p, int64_t y, Cell* dst) const {
    const int64_t side = s_.pad_w * p.cells;
    if (y < 0 || y >= s_.h) {
      std::fill(dst, dst + (s_.w + 2 * s_.pad_w) * p.cells, Types<T>::kZero);
      return;
    }
    const int64_t channel = a_.x_stride[1], pixel = a_.x_stride[3];
    const T* src = a_.x + p.sample * a_.x_stride[0] + p.group * ci_ * channel + y * a_.x_stride[2];
    std::fill(dst, dst + side, Types<T>::kZero);
    dst += side;
    if (kSameIn && channel == 1 && pixel == ci_ && p.in.open == ci_) {
      std::memcpy(dst, src, s_.w * ci_ * sizeof(T));
    } else if (channel == 1) {
      micro_.compress_pixels(src, pixel, s_.w, p.in, dst);
    } else if (pixel == 1) {
      micro_.gather_planes(src, channel, s_.w, p.in, dst);
    } else {
      gather_strided(p, src, dst);
    }
    if (a_.pre_scale != nullptr) prologue(p, dst);
    dst += s_.w * p.cells;
    std::fill(dst, dst + side, Types<T>::kZero);
  }

  // relu(pre_scale * x + pre_shift) of a row of copied pixels.
  void prologue(const ConvPlan<T>& p, Cell* row) const {
    if constexpr (kSameIn) {
      micro_.affine_relu(s_.w, p.in.open, p.pre_scale, p.pre_shift, row);
    } else if constexpr (std::is_same<T, bf16>::value) {
      // Channels in their order; what is left of a last cell stays zero.
      bf16* x = reinterpret_cast<bf16*>(row);
      const int64_t stride = p.cells * Types<T>::kPack;
      const ActivationRow<bf16> pixels = {s_.w,    p.in.open, x,      p.pre_scale, p.pre_shift,
                                          nullptr, x,         stride, 0,           stride};
      elementwise_micro<bf16>().activate[static_cast<int>(Activation::kRelu)](pixels);
    }
  }

  // A pixel at a time, made contiguous first.
  void gather_strided(const ConvPlan<T>& p, const T* src, Cell* dst) const {
    constexpr int64_t kChunk = 64;
    T pixel[kChunk];
    for (int64_t x = 0; x < s_.w; ++x, dst += p.cells) {
      for (int64_t i = 0; i < p.in.open; i += kChunk) {
        const int64_t n = std::min(kChunk, p.in.open - i);
        for (int64_t j = 0; j < n; ++j) {
          pixel[j] = src[x * a_.x_stride[3] + p.in_index[i + j] * a_.x_stride[1]];
        }
        pack_cells<T>(pixel, n, dst + i / Types<T>::kPack);
      }
    }
  }

  const ConvLink<T>& link_;
  const GatedConv2d<T>& a_;
  const Conv2dShape& s_;
  const Micro<T>& micro_;
  const int64_t ci_;
};

}  // namespace ddi
