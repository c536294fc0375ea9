// The scratch memory of one task of a convolution; a task has one room for all of its row blocks.
#pragma once

#include <algorithm>

#include "base/arena.h"
#include "conv_plan.h"
#include "winograd_row_block.h"

namespace ddi {

// What a row block works in: its input rows, one row of each strip before they are interleaved, the
// compact result, and the same once its strips are taken apart.
template <class T>
struct RowBlockRoom {
  using Cell = typename Types<T>::Cell;
  using Acc = typename Types<T>::Acc;

  RowBlockRoom() = default;
  RowBlockRoom(const Conv2dShape& s, Arena& arena) {
    const int64_t strips = micro<T>().max_strips, slack = 2 * kLanes * strips;
    const int64_t cells = round_up(s.group_ci(), kLanes) / Types<T>::kPack;  // as in interiors
    const int64_t row = (s.w + 2 * s.pad_w + 1) * cells;
    // The smallest row block is one row of outputs of every strip, or one of Winograd's tiles: at
    // most 4 rows of outputs, and 6 of inputs, two each where an image is cut into phases.
    const int64_t lines = std::max(strips, int64_t{2});
    const int64_t rows = std::max(s.window_h(), int64_t{s.winograd ? 6 : 0});
    const int64_t out_rows = s.winograd ? 4 : 1;
    const int64_t out_row = s.out_w() * round_up(s.group_co(), kLanes) * strips;
    single_stride = round_up(row + 2 * kLanes, kLanes);
    out_numel = std::max<int64_t>(out_rows * out_row, kRowBlockBytes / sizeof(Acc)) + slack;
    in = arena.take<Cell>(std::max<int64_t>(rows * row * lines, kRowBlockBytes / sizeof(Cell)) +
                          slack);
    single = arena.take<Cell>(lines * single_stride);
    out = arena.take<Acc>(out_numel);
    single_out = arena.take<Acc>(out_numel + strips * 2 * kLanes);
    expanded_numel = Types<T>::kInteger ? std::max<int64_t>(s.co, kRowBlockBytes / 16) : 0;
    expanded = arena.take<Acc>(expanded_numel);
    if constexpr (kHasWinograd<T>) winograd = WinogradRoom(s, strips, arena);
  }

  Cell *in, *single;
  Acc *out, *single_out;
  Acc* expanded;  // before it is quantized
  int64_t single_stride, out_numel, expanded_numel;
  WinogradRoom winograd;
};

}  // namespace ddi
