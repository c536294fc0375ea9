// A convolution in its place in a chain (conv_chain.h). Between two links stands an interior: of
// each sample the open channels only, [row][column][channel], inside the zeros that the next
// convolution's padding asks for.
#pragma once

#include "gated_conv2d.h"

namespace ddi {

template <class T>
struct ConvLink {
  GatedConv2d<T> conv;
  bool from_interior = false;      // reads what the one before wrote, in the place of conv.x
  bool to_interior = false;        // writes what the next one reads, in the place of conv.y
  int64_t halo_h = 0, halo_w = 0;  // zeros around what is written
};

// Lets `next` read what `link` writes: its open inputs are the open outputs of `link`.
template <class T>
void join(ConvLink<T>& link, ConvLink<T>& next) {
  link.to_interior = next.from_interior = true;
  link.halo_h = next.conv.shape.pad_h;
  link.halo_w = next.conv.shape.pad_w;
}

}  // namespace ddi
