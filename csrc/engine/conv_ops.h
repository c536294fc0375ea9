// Steps that convolve.
#pragma once

#include <memory>

#include "op.h"

namespace ddi::engine {

template <class T>
std::unique_ptr<Op> read_conv2d(Words& words);
template <class T>
std::unique_ptr<Op> read_block(Words& words);
std::unique_ptr<Op> read_dense_layer(Words& words);
std::unique_ptr<Op> read_linear(Words& words);

}  // namespace ddi::engine
