// Checks of the arguments that gated convolutions have in common.
#include "conv2d_args.h"

#include <limits>

namespace ddi {
namespace {

constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 1;  // of a dimension

template <class T>
void widen(const Tensor& t, Tensor& wide) {
  const T* src = static_cast<const T*>(t.const_data_ptr());
  float* dst = static_cast<float*>(wide.mutable_data_ptr());
  for (int64_t i = 0; i < t.numel(); ++i) dst[i] = to_float(src[i]);
}

void check_pair(const char* op, const char* name, const std::vector<int64_t>& pair, int64_t least) {
  STD_TORCH_CHECK(pair.size() == 2, op, ": ", name, " has ", pair.size(),
                  " entries; expected 2, for height and width");
  for (int64_t v : pair) {
    STD_TORCH_CHECK(v >= least && v <= kMost + 1, op, ": ", name, " is ", shape_of(pair),
                    "; expected entries of at least ", least, " and less than 2^31");
  }
}

}  // namespace

void check_image_sizes(const char* op, const char* name, const Tensor& x) {
  for (int64_t d = 0; d < 4; ++d) {
    STD_TORCH_CHECK(x.size(d) >= (d == 0 ? 0 : 1) && x.size(d) <= kMost, op, ": ", name,
                    " has shape ", shape_of(x),
                    "; every dimension but the batch must be at least 1, all less than 2^31");
  }
}

Conv2dShape check_conv2d(const char* op, const Tensor& x, const Tensor& weight,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation, int64_t groups) {
  check_dim(op, "x", x, 4, "[N, Ci, H, W]");
  check_dim(op, "weight", weight, 4, "[Co, Ci / groups, kh, kw]");
  check_pair(op, "stride", stride, 1);
  check_pair(op, "padding", padding, 0);
  check_pair(op, "dilation", dilation, 1);
  for (int64_t d = 0; d < 4; ++d) {
    STD_TORCH_CHECK(weight.size(d) >= 1 && weight.size(d) <= kMost, op, ": weight has shape ",
                    shape_of(weight), "; every dimension must be at least 1 and less than 2^31");
  }
  check_image_sizes(op, "x", x);
  STD_TORCH_CHECK(groups >= 1 && groups <= weight.size(0), op, ": groups is ", groups,
                  "; expected at least 1 and a divisor of weight's ", weight.size(0), " channels");
  STD_TORCH_CHECK(x.size(1) == weight.size(1) * groups && weight.size(0) % groups == 0, op,
                  ": x has ", x.size(1), " channels (shape ", shape_of(x),
                  "), but weight has shape ", shape_of(weight), " and groups is ", groups,
                  "; expected Ci to agree and Co to be a multiple of groups");
  const Conv2dShape s = {x.size(0),      x.size(1),      x.size(2),   x.size(3), weight.size(0),
                         weight.size(2), weight.size(3), stride[0],   stride[1], padding[0],
                         padding[1],     dilation[0],    dilation[1], groups};
  STD_TORCH_CHECK(s.h + 2 * s.pad_h > s.dilation_h * (s.kh - 1) &&
                      s.w + 2 * s.pad_w > s.dilation_w * (s.kw - 1),
                  op, ": the kernel, ", shape_of({s.kh, s.kw}), " with dilation ",
                  shape_of(dilation), ", is larger than the padded input, ",
                  shape_of({s.h + 2 * s.pad_h, s.w + 2 * s.pad_w}));
  // In floating point, where sizes near the limits of int64_t cannot wrap around.
  const double outputs = static_cast<double>(s.n) * s.co * s.out_h() * s.out_w();
  STD_TORCH_CHECK(outputs < 1e15, op, ": the output would have shape ",
                  shape_of({s.n, s.co, s.out_h(), s.out_w()}),
                  ", more than any machine holds; check padding, which is ", shape_of(padding));
  return s;
}

OptionalTensor check_dense(const char* op, const char* name, const OptionalTensor& t,
                           ScalarType dtype, const std::vector<int64_t>& shape) {
  if (!t.has_value()) return std::nullopt;
  check_cpu(op, name, *t);
  check_dtype(op, name, *t, dtype);
  check_shape(op, name, *t, shape);
  return as_dense(*t, MemoryFormat::Contiguous);
}

OptionalTensor widened(const OptionalTensor& t) {
  if (!t.has_value() || !is_half(t->scalar_type())) return t;
  Tensor wide = new_tensor(*t, {t->numel()}, ScalarType::Float);
  if (t->scalar_type() == ScalarType::Half) {
    widen<half>(*t, wide);
  } else {
    widen<bf16>(*t, wide);
  }
  return wide;
}

std::vector<int64_t> gates_shape(int64_t samples, int64_t channels, int64_t group_size) {
  return {samples, (channels - 1) / group_size + 1};
}

}  // namespace ddi
