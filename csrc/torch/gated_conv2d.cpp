// ddi::gated_conv2d for the CPU: checks, allocation, registration. The batch may have any strides;
// masks, scale and bias are small and made contiguous, a residual takes the output's layout.
#include "../cpu/gated_conv2d.h"

#include <limits>

#include "../cpu/prepack_conv2d.h"
#include "prepack_conv2d.h"

namespace ddi {
namespace {

constexpr const char* kOp = "gated_conv2d";

struct Inputs {
  const Tensor &x, &weight;
  OptionalTensor bias, packed, in_mask, out_mask, scale, residual;
  int64_t in_group_size, out_group_size;
  bool relu;
};

void check_pair(const char* name, const std::vector<int64_t>& pair, int64_t least) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(pair.size() == 2, kOp, ": ", name, " has ", pair.size(),
                  " entries; expected 2, for height and width");
  for (int64_t v : pair) {
    STD_TORCH_CHECK(v >= least && v <= kMost, kOp, ": ", name, " is ", shape_of(pair),
                    "; expected entries of at least ", least, " and less than 2^31");
  }
}

Conv2dShape check_sizes(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& stride,
                        const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                        int64_t groups) {
  check_dim(kOp, "x", x, 4, "[N, Ci, H, W]");
  check_dim(kOp, "weight", weight, 4, "[Co, Ci / groups, kh, kw]");
  check_pair("stride", stride, 1);
  check_pair("padding", padding, 0);
  check_pair("dilation", dilation, 1);
  for (int64_t d = 0; d < 4; ++d) {
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 1;
    STD_TORCH_CHECK(weight.size(d) >= 1 && weight.size(d) <= kMost, kOp, ": weight has shape ",
                    shape_of(weight), "; every dimension must be at least 1 and less than 2^31");
    STD_TORCH_CHECK(x.size(d) >= (d == 0 ? 0 : 1) && x.size(d) <= kMost, kOp, ": x has shape ",
                    shape_of(x),
                    "; every dimension but the batch must be at least 1, all less "
                    "than 2^31");
  }
  STD_TORCH_CHECK(groups >= 1 && groups <= weight.size(0), kOp, ": groups is ", groups,
                  "; expected at least 1 and a divisor of weight's ", weight.size(0), " channels");
  STD_TORCH_CHECK(x.size(1) == weight.size(1) * groups && weight.size(0) % groups == 0, kOp,
                  ": x has ", x.size(1), " channels (shape ", shape_of(x),
                  "), but weight has shape ", shape_of(weight), " and groups is ", groups,
                  "; expected Ci to agree and Co to be a multiple of groups");
  const Conv2dShape s = {x.size(0),      x.size(1),      x.size(2),   x.size(3), weight.size(0),
                         weight.size(2), weight.size(3), stride[0],   stride[1], padding[0],
                         padding[1],     dilation[0],    dilation[1], groups};
  STD_TORCH_CHECK(s.h + 2 * s.pad_h > s.dilation_h * (s.kh - 1) &&
                      s.w + 2 * s.pad_w > s.dilation_w * (s.kw - 1),
                  kOp, ": the kernel, ", shape_of({s.kh, s.kw}), " with dilation ",
                  shape_of(dilation), ", is larger than the padded input, ",
                  shape_of({s.h + 2 * s.pad_h, s.w + 2 * s.pad_w}));
  // In floating point, where sizes near the limits of int64_t cannot wrap around.
  const double outputs = static_cast<double>(s.n) * s.co * s.out_h() * s.out_w();
  STD_TORCH_CHECK(outputs < 1e15, kOp, ": the output would have shape ",
                  shape_of({s.n, s.co, s.out_h(), s.out_w()}),
                  ", more than any machine holds; check padding, which is ", shape_of(padding));
  return s;
}

// A mask or a scale: one entry per sample and group of channels. Returned contiguous.
OptionalTensor check_by_group(const char* name, const OptionalTensor& t, ScalarType dtype,
                              int64_t samples, int64_t channels, int64_t group_size) {
  if (!t.has_value()) return std::nullopt;
  check_cpu(kOp, name, *t);
  check_dtype(kOp, name, *t, dtype);
  check_shape(kOp, name, *t, {samples, (channels - 1) / group_size + 1});
  return as_dense(*t, MemoryFormat::Contiguous);
}

void check_tensors(Inputs& in, const Conv2dShape& s, MemoryFormat format) {
  check_real(kOp, "x", in.x);
  const ScalarType dtype = in.x.scalar_type();
  check_cpu(kOp, "x", in.x);
  check_cpu(kOp, "weight", in.weight);
  check_dtype(kOp, "weight", in.weight, dtype);
  STD_TORCH_CHECK(in.in_group_size >= 1 && in.out_group_size >= 1, kOp,
                  ": in_group_size and out_group_size are ", in.in_group_size, " and ",
                  in.out_group_size, "; expected at least 1");
  if (in.bias.has_value()) {
    check_cpu(kOp, "bias", *in.bias);
    check_dtype(kOp, "bias", *in.bias, dtype);
    check_shape(kOp, "bias", *in.bias, {s.co});
    in.bias = as_dense(*in.bias, MemoryFormat::Contiguous);
  }
  if (in.packed.has_value()) {
    check_cpu(kOp, "packed", *in.packed);
    check_dtype(kOp, "packed", *in.packed, dtype);
    check_shape(kOp, "packed", *in.packed,
                {prepack_conv2d_numel(s.co, s.group_ci(), s.kh, s.kw, s.groups)});
    in.packed = as_dense(*in.packed, MemoryFormat::Contiguous);
  }
  in.in_mask = check_by_group("in_mask", in.in_mask, ScalarType::Bool, s.n, s.ci, in.in_group_size);
  in.out_mask =
      check_by_group("out_mask", in.out_mask, ScalarType::Bool, s.n, s.co, in.out_group_size);
  in.scale = check_by_group("scale", in.scale, dtype, s.n, s.co, in.out_group_size);
  if (in.residual.has_value()) {
    check_cpu(kOp, "residual", *in.residual);
    check_dtype(kOp, "residual", *in.residual, dtype);
    check_shape(kOp, "residual", *in.residual, {s.n, s.co, s.out_h(), s.out_w()});
    in.residual = as_dense(*in.residual, format);
  }
}

template <class T>
const T* data(const OptionalTensor& t) {
  return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

template <class T>
void run(const Inputs& in, const Conv2dShape& s, MemoryFormat format, Tensor& y) {
  const Tensor& x = in.x;
  const GatedConv2d<T> args = {
      s,
      x.const_data_ptr<T>(),
      {x.stride(0), x.stride(1), x.stride(2), x.stride(3)},
      data<T>(in.packed),
      data<T>(in.bias),
      data<uint8_t>(in.in_mask),
      in.in_group_size,
      data<uint8_t>(in.out_mask),
      in.out_group_size,
      data<T>(in.scale),
      data<T>(in.residual),
      in.relu,
      format == MemoryFormat::ChannelsLast,
      y.mutable_data_ptr<T>(),
  };
  const int64_t threads = torch::stable::get_num_threads();
  with_workspace(kOp, gated_conv2d_workspace_bytes<T>(s, threads), [&](void* workspace) {
    gated_conv2d<T>(args, threads, parallel_tasks, workspace);
  });
}

Tensor gated_conv2d_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& packed, const OptionalTensor& in_mask,
                        const OptionalTensor& out_mask, const OptionalTensor& scale,
                        const OptionalTensor& residual, const std::vector<int64_t>& stride,
                        const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                        int64_t groups, int64_t in_group_size, int64_t out_group_size, bool relu) {
  const Conv2dShape s = check_sizes(x, weight, stride, padding, dilation, groups);
  Inputs in = {x,     weight,   bias,          packed,         in_mask, out_mask,
               scale, residual, in_group_size, out_group_size, relu};
  const MemoryFormat format = format_of(x);
  check_tensors(in, s, format);
  Tensor y = new_tensor(x, {s.n, s.co, s.out_h(), s.out_w()}, x.scalar_type(), format);
  if (s.n == 0) return y;
  if (!in.packed.has_value()) in.packed = prepack_conv2d_cpu(weight, groups);
  if (x.scalar_type() == ScalarType::Float) {
    run<float>(in, s, format, y);
  } else {
    run<double>(in, s, format, y);
  }
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddi, CPU, m) { m.impl("gated_conv2d", TORCH_BOX(&gated_conv2d_cpu)); }

}  // namespace ddi
