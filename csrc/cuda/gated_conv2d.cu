// ddi::gated_conv2d for CUDA: checks, allocation, lists of open channels, one launch
// (gated_conv2d.cuh). Everything is computed in channels_last; counts stay on the device.
#include "gated_conv2d.cuh"

#include "../torch/conv2d_geometry.h"
#include "active_channels.cuh"
#include "common.cuh"

namespace ddi {
namespace {

constexpr const char* kOp = "gated_conv2d";
constexpr int64_t kManyPixels = 512;  // from here on tiles of 128 of them are well filled
constexpr MemoryFormat kLast = MemoryFormat::ChannelsLast;

// The lists of a gate, and whether it opens and closes whole pieces of `piece` channels.
struct Gate {
  std::optional<Tensor> channels, count;
  bool whole;

  ConvList list() const {
    if (!channels.has_value()) return {nullptr, nullptr};
    return {channels->const_data_ptr<int32_t>(), count->const_data_ptr<int32_t>()};
  }
};

OptionalTensor check(const char* name, const OptionalTensor& t, const Tensor& x, ScalarType dtype,
                     Sizes sizes, MemoryFormat format = MemoryFormat::Contiguous) {
  if (!t.has_value()) return std::nullopt;
  check_like(kOp, name, *t, x, dtype, sizes);
  return as_dense(*t, format);
}

Gate list_channels(const OptionalTensor& mask, const Tensor& x, int64_t channels,
                   int64_t group_size, int64_t piece, cudaStream_t stream) {
  const bool divides = channels % piece == 0;
  if (!mask.has_value()) return {std::nullopt, std::nullopt, divides};
  const int64_t samples = x.size(0);
  Tensor order = new_tensor(x, {samples, channels}, ScalarType::Int);
  Tensor count = new_tensor(x, {samples}, ScalarType::Int);
  active_channels_kernel<Rest::kClosed>
      <<<static_cast<unsigned>(samples), kListThreads, 0, stream>>>(
          static_cast<const uint8_t*>(mask->const_data_ptr()), static_cast<int>(channels),
          group_size, mask->size(1), order.mutable_data_ptr<int32_t>(),
          count.mutable_data_ptr<int32_t>());
  check_launch(kOp);
  return {order, count, divides && (group_size % piece == 0 || mask->size(1) == 1)};
}

template <class T, int BM, bool PIECES>
void launch(const ConvData<T>& d, const ConvShape& s, cudaStream_t stream) {
  constexpr int kShared = ConvTile<BM>::kShared;
  static_assert(kShared <= 48 * 1024, "what every GPU gives a block unasked");
  const int64_t blocks =
      int64_t{d.tiles} * s.samples * ((int64_t{s.CO} + kConvCols - 1) / kConvCols);
  STD_TORCH_CHECK(blocks <= INT32_MAX, kOp, ": the output has ", blocks,
                  " tiles; expected at most 2^31 - 1. Split the batch");
  gated_conv2d_kernel<T, BM, PIECES>
      <<<static_cast<unsigned>(blocks), kConvThreads, kShared, stream>>>(d, s);
  check_launch(kOp);
}

template <class T>
const typename T::Word* words(const OptionalTensor& t) {
  return t.has_value() ? static_cast<const typename T::Word*>(t->const_data_ptr()) : nullptr;
}

bool aligned(std::initializer_list<const void*> pointers) {
  uintptr_t all = 0;
  for (const void* p : pointers) all |= reinterpret_cast<uintptr_t>(p);
  return all % 16 == 0;
}

struct Inputs {
  Tensor x, weight;
  OptionalTensor bias, in_mask, out_mask, scale, residual;
  Conv2dGeometry geometry;
};

template <class T>
void run(const Inputs& in, const ConvShape& s, Tensor& y, cudaStream_t stream) {
  constexpr int kPiece = ConvPiece<T>::kChannels;
  const Conv2dGeometry& g = in.geometry;
  const Gate before = list_channels(in.in_mask, in.x, s.CI, g.in_group_size, kPiece, stream);
  const Gate after = list_channels(in.out_mask, in.x, s.CO, g.out_group_size, kPiece, stream);
  ConvData<T> d{};
  d.x = words<T>(in.x), d.weight = words<T>(in.weight), d.bias = words<T>(in.bias);
  d.scale = words<T>(in.scale), d.residual = words<T>(in.residual);
  d.y = static_cast<typename T::Word*>(y.mutable_data_ptr());
  d.in = before.list(), d.out = after.list();
  d.scale_groups = in.scale.has_value() ? static_cast<int>(in.scale->size(1)) : 1;
  d.scale_group_size = static_cast<int>(std::min<int64_t>(g.out_group_size, s.CO));
  d.relu = g.relu != 0;
  d.whole_pieces = after.whole && aligned({d.y, d.residual});
  const int64_t pixels = int64_t{s.OH} * s.OW;
  const bool pieces = before.whole && aligned({d.x, d.weight});
  // Sums of 128 pixels in float32 leave no registers for the operands.
  constexpr int kMany = sizeof(typename T::Word) == 2 ? 128 : 64;
  const int rows = pieces && pixels >= kManyPixels ? kMany : 64;
  d.tiles = static_cast<int>((pixels + rows - 1) / rows);
  if (!pieces) {
    launch<T, 64, false>(d, s, stream);
  } else if (rows == 64) {
    launch<T, 64, true>(d, s, stream);
  } else {
    launch<T, kMany, true>(d, s, stream);
  }
}

void check_limits(const Tensor& x, const Conv2dShape& s, const Conv2dGeometry& g) {
  STD_TORCH_CHECK(g.groups == 1, kOp, ": groups is ", g.groups,
                  "; the CUDA kernel has no grouped convolution, ddi_kernels.gated_conv2d uses the "
                  "reference for it");
  const bool indexed = x.numel() / s.n <= INT32_MAX && s.co * s.ci * s.kh * s.kw <= INT32_MAX &&
                       s.out_h() * s.out_w() <= INT32_MAX - 128 && s.n <= INT32_MAX;
  const bool sides = s.h + 2 * s.pad_h <= 1 << 29 && s.w + 2 * s.pad_w <= 1 << 29;
  STD_TORCH_CHECK(indexed && sides, kOp, ": x has shape ", shape_of(x),
                  "; the CUDA kernel takes samples and weights of less than 2^31 elements and "
                  "padded sides of at most 2^29");
}

Tensor gated_conv2d_cuda(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                         const OptionalTensor&, const OptionalTensor& in_mask,
                         const OptionalTensor& out_mask, const OptionalTensor& scale,
                         const OptionalTensor& residual, const std::vector<int64_t>& geometry) {
  const Conv2dGeometry g = check_geometry(kOp, geometry);
  const Conv2dShape s = check_conv2d(kOp, x, weight, g);
  const ScalarType dtype = x.scalar_type();
  check_cuda(kOp, "x", x, x);
  check_cuda(kOp, "weight", weight, x);
  STD_TORCH_CHECK(is_half(dtype) || dtype == ScalarType::Float, kOp, ": x has dtype ",
                  torch::headeronly::toString(dtype),
                  "; the CUDA kernel takes float32, float16 and bfloat16");
  check_dtype(kOp, "weight", weight, dtype);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const auto gates_in = gates_shape(s.n, s.ci, g.in_group_size);
  const auto gates_out = gates_shape(s.n, s.co, g.out_group_size);
  const std::array<int64_t, 4> out = {s.n, s.co, s.out_h(), s.out_w()};
  Inputs in = {x,
               weight,
               check("bias", bias, x, dtype, {s.co}),
               check("in_mask", in_mask, x, ScalarType::Bool, gates_in),
               check("out_mask", out_mask, x, ScalarType::Bool, gates_out),
               check("scale", scale, x, dtype, gates_out),
               check("residual", residual, x, dtype, out, kLast),
               g};
  if (s.n == 0) return new_tensor(x, out, format_of(x));
  check_limits(x, s, g);
  in.x = as_dense(x, kLast);
  in.weight = as_dense(weight, kLast);
  Tensor y = new_tensor(x, out, kLast);
  const auto i = [](int64_t size) { return static_cast<int>(size); };
  const ConvShape shape = {i(s.n),        i(s.h),     i(s.w),     i(s.out_h()),    i(s.out_w()),
                           i(s.ci),       i(s.co),    i(s.kh),    i(s.kw),         i(s.stride_h),
                           i(s.stride_w), i(s.pad_h), i(s.pad_w), i(s.dilation_h), i(s.dilation_w)};
  const auto compute = dtype == ScalarType::Float      ? run<Float32>
                       : dtype == ScalarType::BFloat16 ? run<Bfloat16>
                                                       : run<Float16>;
  compute(in, shape, y, current_stream(kOp, x.get_device_index()));
  return as_dense(y, format_of(x));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddi, CUDA, m) { m.impl("gated_conv2d", TORCH_BOX(&gated_conv2d_cuda)); }

}  // namespace ddi
