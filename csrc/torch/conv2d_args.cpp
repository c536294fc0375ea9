// Checks of the arguments that gated convolutions have in common.
#include "conv2d_args.h"

namespace ddi {
namespace {

template <class T>
void widen(const Tensor& t, Tensor& wide) {
  const T* src = static_cast<const T*>(t.const_data_ptr());
  float* dst = static_cast<float*>(wide.mutable_data_ptr());
  for (int64_t i = 0; i < t.numel(); ++i) dst[i] = to_float(src[i]);
}

}  // namespace

OptionalTensor check_dense(const char* op, const char* name, const OptionalTensor& t,
                           ScalarType dtype, Sizes shape) {
  if (!t.has_value()) return std::nullopt;
  check_cpu(op, name, *t);
  check_dtype(op, name, *t, dtype);
  check_shape(op, name, *t, shape);
  return as_dense(*t, MemoryFormat::Contiguous);
}

OptionalTensor widened(const OptionalTensor& t) {
  if (!t.has_value() || !is_half(t->scalar_type())) return t;
  Tensor wide = new_tensor({t->numel()}, ScalarType::Float);
  if (t->scalar_type() == ScalarType::Half) {
    widen<half>(*t, wide);
  } else {
    widen<bf16>(*t, wide);
  }
  return wide;
}

}  // namespace ddi
