#include "conv_weights.h"

#include <type_traits>

#include "prepack_conv2d.h"

namespace ddi::engine {
namespace {

constexpr int64_t kMaxKernel = 64;
// Multiply-adds of a convolution; with it the sums of any plan's steps fit into 64 bits.
constexpr double kMaxMacs = int64_t{1} << 45;

Conv2dShape read_shape(Words& words, int64_t ci, int64_t h, int64_t w) {
  Conv2dShape s = {};
  s.n = 1;
  s.ci = ci;
  s.h = h;
  s.w = w;
  s.co = words.integer(1, kMaxSize, "output channels");
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
  if (s.h + 2 * s.pad_h < s.dilation_h * (s.kh - 1) + 1 ||
      s.w + 2 * s.pad_w < s.dilation_w * (s.kw - 1) + 1) {
    words.fail("the kernel is larger than its image");
  }
  const double taps = static_cast<double>(s.kh * s.kw) * s.co * s.group_ci();
  if (taps * s.out_h() * s.out_w() > kMaxMacs) words.fail("has too many multiply-adds");
  return s;
}

template <class T>
std::vector<T> read_weight(Words& words, int64_t numel) {
  const std::vector<float> wide = words.floats(numel, "weight");
  std::vector<T> values(wide.size());
  for (size_t i = 0; i < wide.size(); ++i) round_to(wide[i], &values[i]);
  return values;
}

void serial(int64_t tasks, Task body) {
  for (int64_t i = 0; i < tasks; ++i) body(i);
}

}  // namespace

template <class T>
ConvWeights<T>::ConvWeights(Words& words, int64_t ci, int64_t h, int64_t w)
    : shape(read_shape(words, ci, h, w)) {
  const int64_t group_ci = shape.group_ci(), taps = shape.kh * shape.kw;
  const std::vector<T> weight = read_weight<T>(words, shape.co * group_ci * taps);
  bias = words.optional_floats(shape.co, "bias");
  const bool narrow = shape.kh == 3 && shape.kw == 3 && shape.groups == 1;
  const bool unit =
      shape.stride_h == 1 && shape.stride_w == 1 && shape.dilation_h == 1 && shape.dilation_w == 1;
  const int64_t transformed = winograd_numel(shape.co, group_ci);
  shape.winograd = std::is_same<T, float>::value && narrow && unit && transformed > 0;
  int64_t numel = prepack_conv2d_numel<T>(shape.co, group_ci, shape.kh, shape.kw, shape.groups);
  if (shape.winograd) numel += transformed;
  packed = Aligned<typename Types<T>::Cell>(numel / Types<T>::kPack);
  prepack_conv2d<T>({shape.co,
                     group_ci,
                     shape.kh,
                     shape.kw,
                     weight.data(),
                     {group_ci * taps, taps, shape.kw, 1},
                     shape.groups,
                     shape.winograd},
                    serial, packed.get());
}

template <class T>
GatedConv2d<T> ConvWeights<T>::args(int64_t n) const {
  GatedConv2d<T> args = {};
  args.shape = shape;
  args.shape.n = n;
  args.packed = packed.get();
  args.bias = bias.empty() ? nullptr : bias.data();
  args.in_group_size = args.out_group_size = 1;
  args.channels_last = true;
  return args;
}

template <class T>
int64_t ConvWeights<T>::macs(int64_t open_in, int64_t open_out) const {
  const int64_t pixels = shape.out_h() * shape.out_w();
  return pixels * shape.kh * shape.kw * (open_in * open_out / shape.groups);
}

template struct ConvWeights<float>;
template struct ConvWeights<bf16>;

}  // namespace ddi::engine
