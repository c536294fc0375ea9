#include "op_kinds.h"

#include "base/dtypes.h"

namespace ddi::engine {
namespace {

template <class T>
std::unique_ptr<Op> read_typed(OpCode code, Words& words) {
  switch (code) {
    case OpCode::kConv2d:
      return read_conv2d<T>(words);
    case OpCode::kBlock:
      return read_block<T>(words);
    case OpCode::kGate:
      return read_gate(words);
    case OpCode::kMean:
      return read_mean<T>(words);
    case OpCode::kLinear:
      return read_linear(words);
    case OpCode::kOpenAll:
      return read_open_all(words);
    case OpCode::kPool2d:
      return read_pool2d<T>(words);
    case OpCode::kActivation:
      return read_activation<T>(words);
    case OpCode::kCopy:
      return read_copy<T>(words);
    case OpCode::kDenseLayer:
      return read_dense_layer<T>(words);
    case OpCode::kConv2dInt8:
    case OpCode::kBlockInt8:
      if (words.graph().type != PlanType::kInt8)
        words.fail("is of int8, in a plan of another type");
      return code == OpCode::kBlockInt8 ? read_block_int8(words) : read_conv2d_int8(words);
  }
  words.fail("is of a kind that this build does not know");
}

}  // namespace

std::unique_ptr<Op> read_op(OpCode code, Words& words) {
  std::unique_ptr<Op> op = words.graph().type == PlanType::kBFloat16
                               ? read_typed<bf16>(code, words)
                               : read_typed<float>(code, words);
  words.done();
  return op;
}

}  // namespace ddi::engine
