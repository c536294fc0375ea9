// Steps that decide, and what they decide from.
#pragma once

#include <memory>

#include "op.h"

namespace ddi::engine {

std::unique_ptr<Op> read_gate(Words& words);
std::unique_ptr<Op> read_open_all(Words& words);
template <class T>
std::unique_ptr<Op> read_mean(Words& words);

}  // namespace ddi::engine
