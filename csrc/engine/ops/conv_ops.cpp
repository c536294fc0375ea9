// Convolution and linear layer.
#include <type_traits>

#include "conv_weights.h"
#include "op_kinds.h"
#include "pixels/activate_pixels.h"
#include "values.h"

namespace ddi::engine {
namespace {

template <class T>
class Conv2dOp : public Op {
 public:
  explicit Conv2dOp(Words& words)
      : in_(words.value(Kind::kImage, -1, "input")),
        out_(words.value(Kind::kImage, -1, "output")),
        residual_(words.optional_value(Kind::kImage, -1, "residual")),
        in_mask_(words.optional_value(Kind::kBits, words.graph().values[in_].channels, "mask")),
        relu_(words.flag("relu")),
        conv_(words, words.graph().values[in_].channels, words.graph().buffer_of(in_).h,
              words.graph().buffer_of(in_).w) {
    pre_scale_ = words.optional_floats(conv_.shape.ci, "scale");
    pre_shift_ = words.optional_floats(conv_.shape.ci, "shift");
    if (pre_scale_.size() != pre_shift_.size()) words.fail("scale and shift come together");
    check_result(words, out_, residual_, conv_.shape);
    reads = {in_};
    if (residual_ != kNone) reads.push_back(residual_);
    if (in_mask_ != kNone) reads.push_back(in_mask_);
    writes = {out_};
    if (std::is_same<T, bf16>::value && conv_.shape.groups > 1) {
      words.fail("bfloat16 has no convolution groups");
    }
  }

  bool takes_strided_image() const override { return std::is_same<T, float>::value; }

  int64_t workspace_bytes(int64_t n, int64_t threads) const override {
    Conv2dShape shape = conv_.shape;
    shape.n = n;
    const int64_t bytes = gated_conv2d_workspace_bytes<T>(shape, threads);
    return bytes < 0 ? bytes : bytes + dense_bits_bytes(in_mask_, shape.ci, n);
  }

  void run(const Frame& frame) const override {
    GatedConv2d<T> args = conv_.args(frame.n);
    set_input(frame, in_, &args.x, args.x_stride);
    if constexpr (std::is_same<T, float>::value) {
      if (strided_image) {
        args.x = frame.image;
        std::copy_n(frame.image_stride, 4, args.x_stride);
      }
    }
    if (!pre_scale_.empty()) {
      args.pre_scale = pre_scale_.data();
      args.pre_shift = pre_shift_.data();
    }
    if (in_mask_ != kNone) args.in_open = dense_bits(frame, in_mask_, frame.workspace);
    if (residual_ != kNone) args.residual = frame.at<T>(residual_);
    args.relu = relu_;
    args.y = frame.at<T>(out_);
    const Buffer& y = frame.graph.buffer_of(out_);
    if (y.channels != args.shape.co) {
      args.y_sample_stride = y.numel();
      args.y_stride = y.channels;
    }
    char* room = static_cast<char*>(frame.workspace);
    room += dense_bits_bytes(in_mask_, args.shape.ci, frame.n);
    gated_conv2d(args, frame.threads, frame.parallel_for, room);
  }

  Work dense_work() const override { return conv_.dense_work(); }

  Work work(const Frame& frame, int64_t sample) const override {
    return conv_.work(count_open(frame, in_mask_, sample, conv_.shape.ci, 1), conv_.shape.co);
  }

 private:
  const int64_t in_, out_, residual_, in_mask_;
  const bool relu_;
  const ConvWeights<T> conv_;
  std::vector<float> pre_scale_, pre_shift_;
};

// y = act(W x + b) of vectors: a 1x1 convolution of an image whose pixels are the samples, so that
// weights are read once for the batch.
class LinearOp : public Op {
 public:
  explicit LinearOp(Words& words)
      : in_(words.value(Kind::kVector, -1, "input")),
        out_(words.value(Kind::kVector, -1, "output")),
        activation_(activation_of(words)),
        conv_(words, words.graph().values[in_].channels, 1, 1) {
    const Conv2dShape& s = conv_.shape;
    const bool plain = s.kh == 1 && s.kw == 1 && s.groups == 1 && s.pad_h == 0 && s.pad_w == 0 &&
                       s.stride_h == 1 && s.stride_w == 1;
    if (!plain) words.fail("a linear layer has a kernel, padding or a stride");
    if (words.graph().values[out_].channels != s.co) words.fail("output has other channels");
    reads = {in_};
    writes = {out_};
  }

  int64_t workspace_bytes(int64_t n, int64_t threads) const override {
    return gated_conv2d_workspace_bytes<float>(shape(n), threads);
  }

  void run(const Frame& frame) const override {
    GatedConv2d<float> args = conv_.args(1);
    args.shape = shape(frame.n);
    args.x = frame.at<float>(in_);
    const int64_t pixel = frame.stride(in_);
    args.x_stride[0] = args.x_stride[2] = frame.n * pixel;
    args.x_stride[1] = 1;
    args.x_stride[3] = pixel;
    args.relu = activation_ == Activation::kRelu;
    args.y = frame.at<float>(out_);
    args.y_stride = frame.stride(out_);
    args.y_sample_stride = frame.n * args.y_stride;
    gated_conv2d(args, frame.threads, frame.parallel_for, frame.workspace);
    if (args.relu || activation_ == Activation::kNone) return;
    PixelActivation<float> act = {};
    act.samples = 1;
    act.pixels = frame.n;
    act.channels = conv_.shape.co;
    act.x = act.y = args.y;
    act.x_stride = act.y_stride = args.y_stride;
    act.activation = activation_;
    activate_pixels(act, frame.threads, frame.parallel_for);
  }

  Work dense_work() const override { return conv_.dense_work(); }

 private:
  Conv2dShape shape(int64_t n) const {
    Conv2dShape s = conv_.shape;
    s.w = n;
    return s;
  }

  const int64_t in_, out_;
  const Activation activation_;
  const ConvWeights<float> conv_;
};

}  // namespace

template <class T>
std::unique_ptr<Op> read_conv2d(Words& words) {
  return std::make_unique<Conv2dOp<T>>(words);
}

std::unique_ptr<Op> read_linear(Words& words) { return std::make_unique<LinearOp>(words); }

template std::unique_ptr<Op> read_conv2d<float>(Words&);
template std::unique_ptr<Op> read_conv2d<bf16>(Words&);

}  // namespace ddi::engine
