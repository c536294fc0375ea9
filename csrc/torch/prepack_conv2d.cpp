// ddi::prepack_conv2d for the CPU: checks, allocation, registration.
#include "prepack_conv2d.h"

#include "../cpu/conv/prepack_conv2d.h"
#include "conv2d_args.h"

namespace ddi {
namespace {

template <class T>
void pack(const Tensor& weight, int64_t groups, bool winograd, Tensor& packed) {
  const PrepackConv2d<T> args = {
      weight.size(0),
      weight.size(1),
      weight.size(2),
      weight.size(3),
      static_cast<const T*>(weight.const_data_ptr()),
      {weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)},
      groups,
      winograd};
  prepack_conv2d<T>(args, parallel_tasks,
                    static_cast<typename Types<T>::Cell*>(packed.mutable_data_ptr()));
}

ScalarType packed_dtype(ScalarType weight) {
  return weight == ScalarType::Half ? ScalarType::Float : weight;
}

int64_t panels_numel(ScalarType weight, int64_t co, int64_t ci, int64_t kh, int64_t kw,
                     int64_t groups) {
  if (weight == ScalarType::BFloat16) return prepack_conv2d_numel<bf16>(co, ci, kh, kw, groups);
  if (weight == ScalarType::Char) return prepack_conv2d_numel<int8_t>(co, ci, kh, kw, groups);
  return prepack_conv2d_numel<float>(co, ci, kh, kw, groups);
}

// Of transformed weights, if there are any.
int64_t transformed_numel(ScalarType weight, int64_t co, int64_t ci, int64_t kh, int64_t kw,
                          int64_t groups) {
  const bool type = weight == ScalarType::Float || weight == ScalarType::Half;
  return type && groups == 1 ? winograd_numel(co, ci, kh, kw) : 0;
}

}  // namespace

OptionalTensor check_packed(const char* op, const char* name, const OptionalTensor& packed,
                            ScalarType weight, Conv2dShape& s) {
  if (!packed.has_value()) return std::nullopt;
  const int64_t panels = panels_numel(weight, s.co, s.group_ci(), s.kh, s.kw, s.groups);
  const int64_t transformed = transformed_numel(weight, s.co, s.ci, s.kh, s.kw, s.groups);
  s.winograd = transformed > 0 && packed->numel() == panels + transformed;
  const int64_t numel = panels + (s.winograd ? transformed : 0);
  return check_dense(op, name, packed, packed_dtype(weight), {numel});
}

Tensor prepack_conv2d_cpu(const Tensor& weight, int64_t groups, bool winograd) {
  constexpr const char* kOp = "prepack_conv2d";
  check_dim(kOp, "weight", weight, 4, "[Co, Ci / groups, kh, kw]");
  const ScalarType dtype = weight.scalar_type();
  const bool real = !is_half(dtype) && dtype != ScalarType::Char;
  if (real) check_real(kOp, "weight", weight);
  STD_TORCH_CHECK(groups == 1 || real, kOp, ": groups is ", groups,
                  "; the native CPU kernel groups float32 and float64, leave the weight unpacked "
                  "otherwise");
  STD_TORCH_CHECK(weight.numel() > 0, kOp, ": weight has shape ", shape_of(weight),
                  "; no dimension may be 0");
  STD_TORCH_CHECK(groups >= 1 && weight.size(0) % groups == 0, kOp, ": groups is ", groups,
                  ", but weight has shape ", shape_of(weight), "; expected a divisor of ",
                  weight.size(0));
  const int64_t co = weight.size(0), ci = weight.size(1), kh = weight.size(2), kw = weight.size(3);
  const int64_t panels = panels_numel(dtype, co, ci, kh, kw, groups);
  const int64_t transformed = winograd ? transformed_numel(dtype, co, ci, kh, kw, groups) : 0;
  winograd = transformed > 0;
  Tensor packed = new_tensor({panels + transformed}, packed_dtype(dtype));
  switch (dtype) {
    case ScalarType::Half:
      pack<half>(weight, groups, winograd, packed);
      break;
    case ScalarType::BFloat16:
      pack<bf16>(weight, groups, winograd, packed);
      break;
    case ScalarType::Char:
      pack<int8_t>(weight, groups, winograd, packed);
      break;
    case ScalarType::Float:
      pack<float>(weight, groups, winograd, packed);
      break;
    default:
      pack<double>(weight, groups, winograd, packed);
  }
  return packed;
}

STABLE_TORCH_LIBRARY_IMPL(ddi, CPU, m) { m.impl("prepack_conv2d", TORCH_BOX(&prepack_conv2d_cpu)); }

}  // namespace ddi
