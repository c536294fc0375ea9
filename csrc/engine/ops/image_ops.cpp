// What stands between convolutions: pooling, activations, copies.
#include <algorithm>
#include <cstdlib>

#include "conv/conv2d_shape.h"
#include "op_kinds.h"
#include "pixels/activate_pixels.h"
#include "pixels/copy_pixels.h"
#include "pixels/mean_pixels.h"
#include "pixels/pool2d.h"
#include "values.h"

namespace ddi::engine {
namespace {

// The means of an image's channels, 0 where a mask closes them.
template <class T>
class MeanOp : public Op {
 public:
  explicit MeanOp(Words& words)
      : in_(words.value(Kind::kImage, -1, "input")),
        channels_(words.graph().values[in_].channels),
        out_(words.value(Kind::kVector, channels_, "output")),
        mask_(words.optional_value(Kind::kBits, channels_, "mask")) {
    reads = {in_};
    if (mask_ != kNone) reads.push_back(mask_);
    writes = {out_};
  }

  int64_t workspace_bytes(int64_t n, int64_t) const override {
    return n * channels_ * static_cast<int64_t>(sizeof(float));
  }

  void run(const Frame& frame) const override {
    const Buffer& x = frame.graph.buffer_of(in_);
    const int64_t width = frame.stride(out_);
    float* out = frame.at<float>(out_);
    // The driver's means have nothing between them.
    const bool dense = frame.n == 1 || width == channels_;
    float* means = dense ? out : static_cast<float*>(frame.workspace);
    const MeanPixels<T> args = {frame.n,   x.pixels(), channels_, frame.at<T>(in_),
                                x.numel(), x.channels, means};
    mean_pixels(args, frame.threads, frame.parallel_for);
    for (int64_t n = 0; n < frame.n; ++n) {
      float* mean = out + n * width;
      if (!dense) std::copy_n(means + n * channels_, channels_, mean);
      if (mask_ == kNone) continue;
      const uint8_t* open = frame.at<uint8_t>(mask_) + n * frame.stride(mask_);
      for (int64_t c = 0; c < channels_; ++c) mean[c] = open[c] != 0 ? mean[c] : 0;
    }
  }

 private:
  const int64_t in_, channels_, out_, mask_;
};

// Outputs along one side, by rounding down or up, each of whose windows has a pixel of the image.
bool pools_to(int64_t out, int64_t size, int64_t kernel, int64_t stride, int64_t pad) {
  const int64_t down = conv_output_size(size, kernel, stride, pad, 1);
  return size + 2 * pad >= kernel && (out == down || out == down + 1) &&
         (out - 1) * stride < size + pad;
}

template <class T>
class Pool2dOp : public Op {
 public:
  explicit Pool2dOp(Words& words)
      : in_(words.value(Kind::kImage, -1, "input")),
        out_(words.value(Kind::kImage, words.graph().values[in_].channels, "output")),
        average_(words.flag("average")),
        count_pad_(words.flag("count_include_pad")) {
    for (int64_t& size : kernel_) size = words.integer(1, kMaxPlanSize, "kernel");
    for (int64_t& size : stride_) size = words.integer(1, kMaxPlanSize, "stride");
    for (int i = 0; i < 2; ++i) pad_[i] = words.integer(0, kernel_[i] / 2, "padding");
    const Buffer &x = words.graph().buffer_of(in_), &y = words.graph().buffer_of(out_);
    if (!pools_to(y.h, x.h, kernel_[0], stride_[0], pad_[0]) ||
        !pools_to(y.w, x.w, kernel_[1], stride_[1], pad_[1])) {
      words.fail("the output's size is not the operation's");
    }
    reads = {in_};
    writes = {out_};
  }

  void run(const Frame& frame) const override {
    const Buffer &x = frame.graph.buffer_of(in_), &y = frame.graph.buffer_of(out_);
    Pool2d<T> args = {};
    args.n = frame.n;
    args.h = x.h;
    args.w = x.w;
    args.channels = frame.graph.values[in_].channels;
    args.kernel_h = kernel_[0];
    args.kernel_w = kernel_[1];
    args.stride_h = stride_[0];
    args.stride_w = stride_[1];
    args.pad_h = pad_[0];
    args.pad_w = pad_[1];
    args.out_h = y.h;
    args.out_w = y.w;
    args.average = average_;
    args.count_include_pad = count_pad_;
    args.x = frame.at<T>(in_);
    args.x_sample_stride = x.numel();
    args.x_stride = x.channels;
    args.y = frame.at<T>(out_);
    args.y_sample_stride = y.numel();
    args.y_stride = y.channels;
    pool2d(args, frame.threads, frame.parallel_for);
  }

 private:
  const int64_t in_, out_;
  const bool average_, count_pad_;
  int64_t kernel_[2], stride_[2], pad_[2];
};

// y = act(scale * x + shift + add), with scale and shift by channel, or scale by sample and
// channel.
template <class T>
class ActivationOp : public Op {
 public:
  explicit ActivationOp(Words& words)
      : in_(words.value(Kind::kImage, -1, "input")),
        out_(words.value(Kind::kImage, channels(words), "output")),
        add_(words.optional_value(Kind::kImage, channels(words), "addend")),
        factor_(words.optional_value(Kind::kVector, channels(words), "factor")),
        scale_(words.optional_floats(channels(words), "scale")),
        shift_(words.optional_floats(channels(words), "shift")),
        activation_(activation_of(words)) {
    if (factor_ != kNone && !scale_.empty()) words.fail("has two factors");
    const Buffer& x = words.graph().buffer_of(in_);
    check_size(words, out_, x.h, x.w);
    if (add_ != kNone) check_size(words, add_, x.h, x.w);
    reads = {in_};
    if (add_ != kNone) reads.push_back(add_);
    if (factor_ != kNone) reads.push_back(factor_);
    writes = {out_};
  }

  void run(const Frame& frame) const override {
    const Buffer &x = frame.graph.buffer_of(in_), &y = frame.graph.buffer_of(out_);
    PixelActivation<T> args = {};
    args.samples = frame.n;
    args.pixels = x.pixels();
    args.channels = frame.graph.values[in_].channels;
    args.x = frame.at<T>(in_);
    args.x_sample_stride = x.numel();
    args.x_stride = x.channels;
    args.scale = scale_.empty() ? nullptr : scale_.data();
    if (factor_ != kNone) {
      args.scale = frame.at<float>(factor_);
      args.scale_sample_stride = frame.stride(factor_);
    }
    args.shift = shift_.empty() ? nullptr : shift_.data();
    if (add_ != kNone) {
      args.add = frame.at<T>(add_);
      args.add_sample_stride = frame.stride(add_);
      args.add_stride = frame.graph.buffer_of(add_).channels;
    }
    args.activation = activation_;
    args.y = frame.at<T>(out_);
    args.y_sample_stride = y.numel();
    args.y_stride = y.channels;
    activate_pixels(args, frame.threads, frame.parallel_for);
  }

 private:
  int64_t channels(const Words& words) const { return words.graph().values[in_].channels; }

  const int64_t in_, out_, add_, factor_;
  const std::vector<float> scale_, shift_;
  const Activation activation_;
};

// Into a concatenation, where what made the image could not write it there.
template <class T>
class CopyOp : public Op {
 public:
  explicit CopyOp(Words& words)
      : in_(words.value(Kind::kImage, -1, "input")),
        out_(words.value(Kind::kImage, words.graph().values[in_].channels, "output")) {
    const Buffer& x = words.graph().buffer_of(in_);
    check_size(words, out_, x.h, x.w);
    const Value &from = words.graph().values[in_], &to = words.graph().values[out_];
    if (from.buffer == to.buffer && std::abs(from.first - to.first) < from.channels) {
      words.fail("copies channels to where they partly are");
    }
    reads = {in_};
    writes = {out_};
  }

  void run(const Frame& frame) const override {
    const Buffer &x = frame.graph.buffer_of(in_), &y = frame.graph.buffer_of(out_);
    const CopyPixels<T, T> args = {frame.n,           x.pixels(), frame.graph.values[in_].channels,
                                   frame.at<T>(in_),  x.numel(),  x.channels,
                                   frame.at<T>(out_), y.numel(),  y.channels};
    copy_pixels(args, frame.threads, frame.parallel_for);
  }

 private:
  const int64_t in_, out_;
};

}  // namespace

template <class T>
std::unique_ptr<Op> read_mean(Words& words) {
  return std::make_unique<MeanOp<T>>(words);
}

template <class T>
std::unique_ptr<Op> read_pool2d(Words& words) {
  return std::make_unique<Pool2dOp<T>>(words);
}

template <class T>
std::unique_ptr<Op> read_activation(Words& words) {
  return std::make_unique<ActivationOp<T>>(words);
}

template <class T>
std::unique_ptr<Op> read_copy(Words& words) {
  return std::make_unique<CopyOp<T>>(words);
}

#define DDI_INSTANTIATE(T)                                 \
  template std::unique_ptr<Op> read_mean<T>(Words&);       \
  template std::unique_ptr<Op> read_pool2d<T>(Words&);     \
  template std::unique_ptr<Op> read_activation<T>(Words&); \
  template std::unique_ptr<Op> read_copy<T>(Words&);

DDI_INSTANTIATE(float)
DDI_INSTANTIATE(bf16)

}  // namespace ddi::engine
