// ddi::prepack_conv2d for the CPU: checks, allocation, registration.
#include "prepack_conv2d.h"

#include "../cpu/prepack_conv2d.h"

namespace ddi {
namespace {

template <class T>
void pack(const Tensor& weight, Tensor& packed) {
  const PrepackConv2d<T> args = {
      weight.size(0),
      weight.size(1),
      weight.size(2),
      weight.size(3),
      weight.const_data_ptr<T>(),
      {weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)}};
  prepack_conv2d<T>(args, parallel_tasks, packed.mutable_data_ptr<T>());
}

}  // namespace

Tensor prepack_conv2d_cpu(const Tensor& weight, int64_t groups) {
  constexpr const char* kOp = "prepack_conv2d";
  check_dim(kOp, "weight", weight, 4, "[Co, Ci / groups, kh, kw]");
  check_real(kOp, "weight", weight);
  STD_TORCH_CHECK(groups == 1, kOp, ": groups is ", groups,
                  "; the native CPU kernel takes groups = 1, leave the weight unpacked otherwise");
  STD_TORCH_CHECK(weight.numel() > 0, kOp, ": weight has shape ", shape_of(weight),
                  "; no dimension may be 0");
  const int64_t numel =
      prepack_conv2d_numel(weight.size(0), weight.size(1), weight.size(2), weight.size(3));
  Tensor packed = new_tensor(weight, {numel}, weight.scalar_type());
  if (weight.scalar_type() == ScalarType::Float) {
    pack<float>(weight, packed);
  } else {
    pack<double>(weight, packed);
  }
  return packed;
}

STABLE_TORCH_LIBRARY_IMPL(ddi, CPU, m) { m.impl("prepack_conv2d", TORCH_BOX(&prepack_conv2d_cpu)); }

}  // namespace ddi
