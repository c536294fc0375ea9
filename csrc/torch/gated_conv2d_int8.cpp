// ddi::gated_conv2d_int8 for the CPU: checks, allocation, registration. Operands are int8 with
// their scales apart; all else is float32. x may have any strides, a residual takes the output's
// layout.
#include <limits>
#include <vector>

#include "conv2d_args.h"
#include "prepack_conv2d.h"

namespace ddi {
namespace {

constexpr const char* kOp = "gated_conv2d_int8";

struct Inputs {
  const Tensor &x, &weight;
  OptionalTensor weight_scale, bias, packed, in_mask, out_mask, scale, residual;
  Conv2dGeometry geometry;
  float x_scale;
  std::optional<double> out_scale;
};

void check_scale(const char* name, double scale) {
  using Limits = std::numeric_limits<float>;
  STD_TORCH_CHECK(scale >= Limits::min() && scale <= Limits::max(), kOp, ": ", name, " is ", scale,
                  "; expected a positive number in the range of float32");
}

void check_tensors(Inputs& in, Conv2dShape& s, MemoryFormat format) {
  check_cpu(kOp, "x", in.x);
  check_dtype(kOp, "x", in.x, ScalarType::Char);
  check_cpu(kOp, "weight", in.weight);
  check_dtype(kOp, "weight", in.weight, ScalarType::Char);
  STD_TORCH_CHECK(s.ci * s.kh * s.kw <= kMaxInt8Products, kOp, ": weight has shape ",
                  shape_of(in.weight), "; at most ", kMaxInt8Products,
                  " products may be summed up, more could overflow");
  const auto gates_in = gates_shape(s.n, s.ci, in.geometry.in_group_size);
  const auto gates_out = gates_shape(s.n, s.co, in.geometry.out_group_size);
  constexpr ScalarType kFloat = ScalarType::Float;
  in.weight_scale = check_dense(kOp, "weight_scale", in.weight_scale, kFloat, {s.co});
  in.bias = check_dense(kOp, "bias", in.bias, kFloat, {s.co});
  in.packed = check_packed(kOp, "packed", in.packed, ScalarType::Char, s);
  in.in_mask = check_dense(kOp, "in_mask", in.in_mask, ScalarType::Bool, gates_in);
  in.out_mask = check_dense(kOp, "out_mask", in.out_mask, ScalarType::Bool, gates_out);
  in.scale = check_dense(kOp, "scale", in.scale, kFloat, gates_out);
  if (in.residual.has_value()) {
    check_cpu(kOp, "residual", *in.residual);
    check_dtype(kOp, "residual", *in.residual, kFloat);
    check_shape(kOp, "residual", *in.residual, {s.n, s.co, s.out_h(), s.out_w()});
    in.residual = as_dense(*in.residual, format);
  }
}

void run(const Inputs& in, const Conv2dShape& s, MemoryFormat format, Tensor& y) {
  const Tensor& x = in.x;
  std::vector<float> factor(static_cast<size_t>(s.co));
  const float* weight_scale = data<float>(in.weight_scale);
  for (size_t c = 0; c < factor.size(); ++c) factor[c] = weight_scale[c] * in.x_scale;
  GatedConv2d<int8_t> args = {
      {s, data<uint32_t>(in.packed), data<float>(in.bias), factor.data(), data<uint8_t>(in.in_mask),
       in.geometry.in_group_size, data<uint8_t>(in.out_mask), in.geometry.out_group_size,
       data<float>(in.scale)},
      static_cast<const int8_t*>(x.const_data_ptr()),
      {x.stride(0), x.stride(1), x.stride(2), x.stride(3)},
      data<float>(in.residual),
      in.geometry.relu != 0,
      format == MemoryFormat::ChannelsLast,
      in.out_scale.has_value() ? nullptr : static_cast<float*>(y.mutable_data_ptr()),
  };
  if (in.out_scale.has_value()) {
    args.y_int8 = static_cast<int8_t*>(y.mutable_data_ptr());
    args.y_scale = static_cast<float>(*in.out_scale);
  }
  const int64_t threads = torch::stable::get_num_threads();
  with_workspace(kOp, gated_conv2d_workspace_bytes<int8_t>(s, threads), [&](void* workspace) {
    gated_conv2d<int8_t>(args, threads, parallel_tasks, workspace);
  });
}

Tensor gated_conv2d_int8_cpu(const Tensor& x, const Tensor& weight, const Tensor& weight_scale,
                             const OptionalTensor& bias, const OptionalTensor& packed,
                             const OptionalTensor& in_mask, const OptionalTensor& out_mask,
                             const OptionalTensor& scale, const OptionalTensor& residual,
                             double x_scale, std::optional<double> out_scale,
                             const std::vector<int64_t>& geometry) {
  const Conv2dGeometry g = check_geometry(kOp, geometry);
  STD_TORCH_CHECK(g.groups == 1, kOp, ": groups is ", g.groups,
                  "; the native CPU kernel takes groups = 1, others go through "
                  "ddi_kernels.gated_conv2d_int8, which uses the reference for them");
  Conv2dShape s = check_conv2d(kOp, x, weight, g);
  check_scale("x_scale", x_scale);
  if (out_scale.has_value()) check_scale("out_scale", *out_scale);
  Inputs in = {x,
               weight,
               weight_scale,
               bias,
               packed,
               in_mask,
               out_mask,
               scale,
               residual,
               g,
               static_cast<float>(x_scale),
               out_scale};
  const MemoryFormat format = format_of(x);
  check_tensors(in, s, format);
  const ScalarType dtype = out_scale.has_value() ? ScalarType::Char : ScalarType::Float;
  Tensor y = new_tensor({s.n, s.co, s.out_h(), s.out_w()}, dtype, format);
  if (s.n == 0) return y;
  if (!in.packed.has_value()) in.packed = prepack_conv2d_cpu(weight, g.groups);
  run(in, s, format, y);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddi, CPU, m) {
  m.impl("gated_conv2d_int8", TORCH_BOX(&gated_conv2d_int8_cpu));
}

}  // namespace ddi
