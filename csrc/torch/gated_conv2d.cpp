// ddi::gated_conv2d for the CPU: checks, allocation, registration. The batch may have any strides;
// masks, scale and bias are small and made contiguous and float32 (or float64), a residual takes
// the output's layout.
#include "../cpu/conv/gated_conv2d.h"

#include <vector>

#include "conv2d_args.h"
#include "prepack_conv2d.h"

namespace ddi {
namespace {

constexpr const char* kOp = "gated_conv2d";

struct Inputs {
  const Tensor &x, &weight;
  OptionalTensor bias, packed, in_mask, out_mask, scale, residual;
  Conv2dGeometry geometry;
};

void check_tensors(Inputs& in, Conv2dShape& s, MemoryFormat format) {
  const ScalarType dtype = in.x.scalar_type();
  if (!is_half(dtype)) check_real(kOp, "x", in.x);
  check_cpu(kOp, "x", in.x);
  check_cpu(kOp, "weight", in.weight);
  check_dtype(kOp, "weight", in.weight, dtype);
  const auto gates_in = gates_shape(s.n, s.ci, in.geometry.in_group_size);
  const auto gates_out = gates_shape(s.n, s.co, in.geometry.out_group_size);
  in.bias = check_dense(kOp, "bias", in.bias, dtype, {s.co});
  in.packed = check_packed(kOp, "packed", in.packed, dtype, s);
  in.in_mask = check_dense(kOp, "in_mask", in.in_mask, ScalarType::Bool, gates_in);
  in.out_mask = check_dense(kOp, "out_mask", in.out_mask, ScalarType::Bool, gates_out);
  in.scale = check_dense(kOp, "scale", in.scale, dtype, gates_out);
  if (in.residual.has_value()) {
    check_cpu(kOp, "residual", *in.residual);
    check_dtype(kOp, "residual", *in.residual, dtype);
    check_shape(kOp, "residual", *in.residual, {s.n, s.co, s.out_h(), s.out_w()});
    in.residual = as_dense(*in.residual, format);
  }
}

template <class T>
void run(const Inputs& in, const Conv2dShape& s, MemoryFormat format, Tensor& y) {
  const Tensor& x = in.x;
  const OptionalTensor bias = widened(in.bias), scale = widened(in.scale);
  const GatedConv2d<T> args = {
      {s, data<typename Types<T>::Cell>(in.packed), data<typename Types<T>::Acc>(bias), nullptr,
       data<uint8_t>(in.in_mask), in.geometry.in_group_size, data<uint8_t>(in.out_mask),
       in.geometry.out_group_size, data<typename Types<T>::Acc>(scale)},
      static_cast<const T*>(x.const_data_ptr()),
      {x.stride(0), x.stride(1), x.stride(2), x.stride(3)},
      data<T>(in.residual),
      in.geometry.relu != 0,
      format == MemoryFormat::ChannelsLast,
      static_cast<T*>(y.mutable_data_ptr()),
  };
  const int64_t threads = torch::stable::get_num_threads();
  with_workspace(kOp, gated_conv2d_workspace_bytes<T>(s, threads), [&](void* workspace) {
    gated_conv2d<T>(args, threads, parallel_tasks, workspace);
  });
}

Tensor gated_conv2d_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& packed, const OptionalTensor& in_mask,
                        const OptionalTensor& out_mask, const OptionalTensor& scale,
                        const OptionalTensor& residual, const std::vector<int64_t>& geometry) {
  const Conv2dGeometry g = check_geometry(kOp, geometry);
  STD_TORCH_CHECK(g.groups == 1 || !is_half(x.scalar_type()), kOp, ": groups is ", g.groups,
                  " and x is in half precision; the native CPU kernel groups float32 and float64, "
                  "others go through ddi_kernels.gated_conv2d, which uses the reference for them");
  Conv2dShape s = check_conv2d(kOp, x, weight, g);
  Inputs in = {x, weight, bias, packed, in_mask, out_mask, scale, residual, g};
  const MemoryFormat format = format_of(x);
  check_tensors(in, s, format);
  Tensor y = new_tensor({s.n, s.co, s.out_h(), s.out_w()}, x.scalar_type(), format);
  if (s.n == 0) return y;
  if (!in.packed.has_value()) in.packed = prepack_conv2d_cpu(weight, g.groups);
  switch (x.scalar_type()) {
    case ScalarType::Half:
      run<half>(in, s, format, y);
      break;
    case ScalarType::BFloat16:
      run<bf16>(in, s, format, y);
      break;
    case ScalarType::Float:
      run<float>(in, s, format, y);
      break;
    default:
      run<double>(in, s, format, y);
  }
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddi, CPU, m) { m.impl("gated_conv2d", TORCH_BOX(&gated_conv2d_cpu)); }

}  // namespace ddi
