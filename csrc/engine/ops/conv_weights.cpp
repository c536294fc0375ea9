#include "conv_weights.h"

#include <limits>
#include <type_traits>

#include "conv/prepack_conv2d.h"
#include "values.h"

namespace ddi::engine {
namespace {

constexpr int64_t kMaxKernel = 64;
// Multiply-adds of a convolution; with it the sums of any plan's steps, and of the bytes that they
// read and write, fit into 64 bits.
constexpr double kMaxMacs = int64_t{1} << 44;

Conv2dShape read_shape(Words& words, int64_t ci, int64_t h, int64_t w) {
  Conv2dShape s = {};
  s.n = 1;
  s.ci = ci;
  s.h = h;
  s.w = w;
  s.co = words.integer(1, kMaxPlanSize, "output channels");
  s.kh = words.integer(1, kMaxKernel, "kernel height");
  s.kw = words.integer(1, kMaxKernel, "kernel width");
  s.stride_h = words.integer(1, kMaxKernel, "stride");
  s.stride_w = words.integer(1, kMaxKernel, "stride");
  s.pad_h = words.integer(0, kMaxKernel, "padding");
  s.pad_w = words.integer(0, kMaxKernel, "padding");
  s.dilation_h = words.integer(1, kMaxKernel, "dilation");
  s.dilation_w = words.integer(1, kMaxKernel, "dilation");
  s.groups = words.integer(1, ci, "groups");
  if (s.ci % s.groups != 0 || s.co % s.groups != 0) words.fail("groups do not divide channels");
  if (!s.has_outputs()) words.fail("the kernel is larger than its image");
  const double taps = static_cast<double>(s.kh * s.kw) * s.co * s.group_ci();
  if (taps * s.out_h() * s.out_w() > kMaxMacs) words.fail("has too many multiply-adds");
  return s;
}

template <class T>
std::vector<T> read_weight(Words& words, int64_t numel) {
  if constexpr (Types<T>::kInteger) {
    const Constant& c = words.constant(numel, "weight");
    if (c.dtype != static_cast<int64_t>(PlanType::kInt8)) words.fail("weight is not of int8");
    const T* data = reinterpret_cast<const T*>(c.data);
    return {data, data + numel};
  } else if constexpr (std::is_same<T, float>::value) {
    return words.floats(numel, "weight");
  } else {
    const std::vector<float> wide = words.floats(numel, "weight");
    std::vector<T> values(wide.size());
    for (size_t i = 0; i < wide.size(); ++i) round_to(wide[i], &values[i]);
    return values;
  }
}

std::vector<float> read_scales(Words& words, int64_t count, const char* what) {
  using Limits = std::numeric_limits<float>;
  std::vector<float> scales = words.floats(count, what);
  for (const float scale : scales) {
    if (!(scale >= Limits::min() && scale <= Limits::max())) {
      words.fail(std::string(what) + " is not positive and finite");
    }
  }
  return scales;
}

void serial(int64_t tasks, Task body) {
  for (int64_t i = 0; i < tasks; ++i) body(i);
}

}  // namespace

void check_result(Words& words, int64_t out, int64_t residual, const Conv2dShape& shape) {
  const Graph& graph = words.graph();
  if (graph.values[out].channels != shape.co) words.fail("output has other channels");
  check_size(words, out, shape.out_h(), shape.out_w());
  if (shape.groups > 1) check_whole(words, out, "output of a grouped convolution");
  if (residual == kNone) return;
  const Buffer &r = graph.buffer_of(residual), &y = graph.buffer_of(out);
  check_whole(words, residual, "residual");
  check_whole(words, out, "output with a residual");
  if (r.channels != y.channels || r.h != y.h || r.w != y.w) {
    words.fail("the residual's size is not the output's");
  }
}

template <class T>
ConvWeights<T>::ConvWeights(Words& words, int64_t ci, int64_t h, int64_t w)
    : shape(read_shape(words, ci, h, w)) {
  using Cell = typename Types<T>::Cell;
  const int64_t group_ci = shape.group_ci(), taps = shape.kh * shape.kw;
  const std::vector<T> weight = read_weight<T>(words, shape.co * group_ci * taps);
  bias = words.optional_floats(shape.co, "bias");
  if constexpr (Types<T>::kInteger) {
    if (shape.groups != 1) words.fail("int8 has no grouped convolution");
    if (shape.ci * taps > kMaxInt8Products) words.fail("sums of int8 products could overflow");
    factor = read_scales(words, shape.co, "factor of the sums");
    x_scale = read_scales(words, 1, "scale of the input")[0];
  }
  const int64_t stride = winograd_stride(winograd_forms(shape.kh, shape.kw).m[0]);
  const int64_t transformed = winograd_numel(shape.co, group_ci, shape.kh, shape.kw);
  shape.winograd = std::is_same<T, float>::value && shape.groups == 1 && transformed > 0 &&
                   shape.stride_h == stride && shape.stride_w == stride && shape.dilation_h == 1 &&
                   shape.dilation_w == 1;
  int64_t numel = prepack_conv2d_numel<T>(shape.co, group_ci, shape.kh, shape.kw, shape.groups);
  if (shape.winograd) numel += transformed;
  const int64_t cells = numel / Types<T>::kPack;
  packed = reinterpret_cast<Cell*>(
      words.graph().weights.take(cells * static_cast<int64_t>(sizeof(Cell))));
  prepack_conv2d<T>({shape.co,
                     group_ci,
                     shape.kh,
                     shape.kw,
                     weight.data(),
                     {group_ci * taps, taps, shape.kw, 1},
                     shape.groups,
                     shape.winograd},
                    serial, packed);
}

template <class T>
MaskedConv<T> ConvWeights<T>::masked(int64_t n) const {
  MaskedConv<T> conv = {};
  conv.shape = shape;
  conv.shape.n = n;
  conv.packed = packed;
  conv.bias = bias.empty() ? nullptr : bias.data();
  if constexpr (Types<T>::kInteger) conv.factor = factor.data();
  conv.in_group_size = conv.out_group_size = 1;
  return conv;
}

template <class T>
GatedConv2d<T> ConvWeights<T>::args(int64_t n) const {
  GatedConv2d<T> args = {masked(n)};
  args.channels_last = true;
  return args;
}

template <class T>
Work ConvWeights<T>::work(int64_t open_in, int64_t open_out) const {
  constexpr int64_t kBytes = sizeof(T);
  const int64_t pixels = shape.out_h() * shape.out_w();
  const int64_t weights = shape.kh * shape.kw * (open_in * open_out / shape.groups);
  const int64_t activations = open_in * shape.h * shape.w + open_out * pixels;
  return {pixels * weights, kBytes * weights, kBytes * activations};
}

template struct ConvWeights<float>;
template struct ConvWeights<bf16>;
template struct ConvWeights<int8_t>;

}  // namespace ddi::engine
