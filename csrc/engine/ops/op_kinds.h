// The kinds of steps that there are, each read from its words.
#pragma once

#include <memory>

#include "op.h"

namespace ddi::engine {

// Reads the step that `words` holds, all of it: whichever of those below the code says.
std::unique_ptr<Op> read_op(OpCode code, Words& words);

// conv_ops.cpp
template <class T>
std::unique_ptr<Op> read_conv2d(Words& words);
std::unique_ptr<Op> read_linear(Words& words);

// block_ops.cpp
template <class T>
std::unique_ptr<Op> read_block(Words& words);
template <class T>
std::unique_ptr<Op> read_dense_layer(Words& words);

// int8_ops.cpp
std::unique_ptr<Op> read_conv2d_int8(Words& words);
std::unique_ptr<Op> read_block_int8(Words& words);

// gate_ops.cpp
std::unique_ptr<Op> read_gate(Words& words);
std::unique_ptr<Op> read_open_all(Words& words);

// image_ops.cpp
template <class T>
std::unique_ptr<Op> read_mean(Words& words);
template <class T>
std::unique_ptr<Op> read_pool2d(Words& words);
template <class T>
std::unique_ptr<Op> read_activation(Words& words);
template <class T>
std::unique_ptr<Op> read_copy(Words& words);

}  // namespace ddi::engine
