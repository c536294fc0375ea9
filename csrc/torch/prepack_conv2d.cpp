// ddi::prepack_conv2d for the CPU: checks, allocation, registration.
#include "prepack_conv2d.h"

#include "../cpu/prepack_conv2d.h"

namespace ddi {
namespace {

template <class T>
void pack(const Tensor& weight, int64_t groups, Tensor& packed) {
  const PrepackConv2d<T> args = {
      weight.size(0),
      weight.size(1),
      weight.size(2),
      weight.size(3),
      weight.const_data_ptr<T>(),
      {weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)},
      groups};
  prepack_conv2d<T>(args, parallel_tasks, packed.mutable_data_ptr<T>());
}

}  // namespace

Tensor prepack_conv2d_cpu(const Tensor& weight, int64_t groups) {
  constexpr const char* kOp = "prepack_conv2d";
  check_dim(kOp, "weight", weight, 4, "[Co, Ci / groups, kh, kw]");
  check_real(kOp, "weight", weight);
  STD_TORCH_CHECK(weight.numel() > 0, kOp, ": weight has shape ", shape_of(weight),
                  "; no dimension may be 0");
  STD_TORCH_CHECK(groups >= 1 && weight.size(0) % groups == 0, kOp, ": groups is ", groups,
                  ", but weight has shape ", shape_of(weight), "; expected a divisor of ",
                  weight.size(0));
  const int64_t numel =
      prepack_conv2d_numel(weight.size(0), weight.size(1), weight.size(2), weight.size(3), groups);
  Tensor packed = new_tensor(weight, {numel}, weight.scalar_type());
  if (weight.scalar_type() == ScalarType::Float) {
    pack<float>(weight, groups, packed);
  } else {
    pack<double>(weight, groups, packed);
  }
  return packed;
}

STABLE_TORCH_LIBRARY_IMPL(ddi, CPU, m) { m.impl("prepack_conv2d", TORCH_BOX(&prepack_conv2d_cpu)); }

}  // namespace ddi
