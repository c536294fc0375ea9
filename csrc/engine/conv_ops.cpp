// Convolution, residual block, dense layer and linear layer: each binds the values of a frame to a
// driver of csrc/cpu.
#include "conv_ops.h"

#include <algorithm>
#include <type_traits>

#include "conv_weights.h"
#include "gated_block.h"
#include "gated_dense_layer.h"

namespace ddi::engine {
namespace {

constexpr int64_t kNone = -1;

// Sets x to an image of the frame.
template <class T>
void set_input(const Frame& frame, int64_t value, const T** x, int64_t* stride) {
  const Buffer& b = frame.graph.buffer_of(value);
  *x = frame.at<T>(value);
  stride[0] = b.numel();
  stride[1] = 1;
  stride[2] = b.w * b.channels;
  stride[3] = b.channels;
}

void check_image(Words& words, int64_t value, const Conv2dShape& s) {
  const Buffer& b = words.graph().buffer_of(value);
  if (b.h != s.out_h() || b.w != s.out_w())
    words.fail("the output's size is not the convolution's");
}

// The whole of a buffer: what drivers write without strides of their own.
void check_whole(Words& words, int64_t value, const char* what) {
  const Graph& graph = words.graph();
  if (graph.values[value].channels != graph.buffer_of(value).channels) {
    words.fail(std::string(what) + " is a part of a buffer");
  }
}

int64_t count_open(const Frame& frame, int64_t mask, int64_t sample, int64_t channels,
                   int64_t group_size) {
  if (mask == kNone) return channels;
  const uint8_t* open = frame.at<uint8_t>(mask) + sample * frame.stride(mask);
  int64_t count = 0;
  for (int64_t c = 0, g = 0; c < channels; c += group_size, ++g) {
    if (open[g] != 0) count += std::min(group_size, channels - c);
  }
  return count;
}

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
    const Graph& graph = words.graph();
    if (graph.values[out_].channels != conv_.shape.co) words.fail("output has other channels");
    check_image(words, out_, conv_.shape);
    if (in_mask_ != kNone) check_whole(words, in_mask_, "mask");
    if (conv_.shape.groups > 1) check_whole(words, out_, "output of a grouped convolution");
    if (residual_ != kNone) {
      const Buffer &r = graph.buffer_of(residual_), &y = graph.buffer_of(out_);
      check_whole(words, residual_, "residual");
      check_whole(words, out_, "output with a residual");
      if (r.channels != y.channels || r.h != y.h || r.w != y.w) {
        words.fail("the residual's size is not the output's");
      }
      reads = {in_, residual_};
    } else {
      reads = {in_};
    }
    if (in_mask_ != kNone) reads.push_back(in_mask_);
    writes = {out_};
    if (std::is_same<T, bf16>::value && (conv_.shape.groups > 1 || !pre_scale_.empty())) {
      words.fail("bfloat16 has no such convolution");
    }
  }

  bool takes_strided_image() const override { return std::is_same<T, float>::value; }

  int64_t workspace_bytes(int64_t n, int64_t threads) const override {
    Conv2dShape shape = conv_.shape;
    shape.n = n;
    return gated_conv2d_workspace_bytes<T>(shape, threads);
  }

  void run(const Frame& frame) const override {
    GatedConv2d<T> args = conv_.args(frame.n);
    set_input(frame, in_, &args.x, args.x_stride);
    if constexpr (std::is_same<T, float>::value) {
      if (strided_image) {
        args.x = frame.image;
        std::copy_n(frame.image_stride, 4, args.x_stride);
      }
      if (!pre_scale_.empty()) {
        args.pre_scale = pre_scale_.data();
        args.pre_shift = pre_shift_.data();
      }
    }
    if (in_mask_ != kNone) args.in_open = frame.at<uint8_t>(in_mask_);
    if (residual_ != kNone) args.residual = frame.at<T>(residual_);
    args.relu = relu_;
    args.y = frame.at<T>(out_);
    const Buffer& y = frame.graph.buffer_of(out_);
    if (y.channels != args.shape.co) {
      args.y_sample_stride = y.numel();
      args.y_stride = y.channels;
    }
    gated_conv2d(args, frame.threads, frame.parallel_for, frame.workspace);
  }

  int64_t dense_macs() const override { return conv_.dense_macs(); }

  int64_t macs(const Frame& frame, int64_t sample) const override {
    return conv_.macs(count_open(frame, in_mask_, sample, conv_.shape.ci, 1), conv_.shape.co);
  }

 private:
  const int64_t in_, out_, residual_, in_mask_;
  const bool relu_;
  const ConvWeights<T> conv_;
  std::vector<float> pre_scale_, pre_shift_;
};

// One convolution of a residual branch, and the mask of its outputs.
template <class T>
struct BranchConv {
  BranchConv(Words& words, int64_t ci, int64_t h, int64_t w, bool last)
      : mask(last ? kNone : words.optional_value(Kind::kBits, -1, "mask")),
        group_size(last ? 1 : words.integer(1, kMaxSize, "group size")),
        conv(words, ci, h, w) {
    if (conv.shape.groups != 1) words.fail("a block has grouped convolutions");
    if (mask == kNone) return;
    check_whole(words, mask, "mask");
    if (words.graph().values[mask].channels != (conv.shape.co + group_size - 1) / group_size) {
      words.fail("the mask has another number of groups");
    }
  }

  const int64_t mask, group_size;
  const ConvWeights<T> conv;
};

template <class T>
class BlockOp : public Op {
  using Acc = typename Types<T>::Acc;

 public:
  explicit BlockOp(Words& words)
      : in_(words.value(Kind::kImage, -1, "input")),
        out_(words.value(Kind::kImage, -1, "output")),
        keep_(words.optional_value(Kind::kBits, 1, "keep")),
        in_pooled_(words.optional_value(Kind::kVector, words.graph().values[in_].channels,
                                        "pooled input")),
        out_pooled_(words.optional_value(Kind::kVector, words.graph().values[out_].channels,
                                         "pooled output")) {
    const Buffer &x = words.graph().buffer_of(in_), &y = words.graph().buffer_of(out_);
    check_whole(words, in_, "input");
    check_whole(words, out_, "output");
    const int64_t depth = words.integer(2, 3, "convolutions");
    int64_t ci = x.channels, h = x.h, w = x.w;
    for (int64_t i = 0; i < depth; ++i) {
      branch_.push_back(std::make_unique<BranchConv<T>>(words, ci, h, w, i + 1 == depth));
      const Conv2dShape& s = branch_.back()->conv.shape;
      ci = s.co;
      h = s.out_h();
      w = s.out_w();
    }
    if (words.flag("shortcut")) {
      shortcut_ = std::make_unique<ConvWeights<T>>(words, x.channels, x.h, x.w);
      const Conv2dShape& s = shortcut_->shape;
      if (s.co != ci || s.out_h() != h || s.out_w() != w || s.groups != 1) {
        words.fail("the shortcut's output is not the branch's");
      }
    } else if (x.channels != ci || x.h != h || x.w != w) {
      words.fail("the branch changes the shape, without a convolution in the shortcut");
    }
    if (y.channels != ci || y.h != h || y.w != w) words.fail("the output's size is another");
    if (keep_ != kNone && shortcut_ != nullptr) words.fail("a block with a shortcut is skipped");
    if (in_ == out_ && shortcut_ != nullptr) words.fail("a block with a shortcut is in place");
    add_uses();
  }

  int64_t workspace_bytes(int64_t n, int64_t threads) const override {
    return gated_block_workspace_bytes(args(n), threads);
  }

  void run(const Frame& frame) const override {
    GatedBlock<T> block = args(frame.n);
    for (int i = 0; i < block.depth; ++i) {
      if (branch_[i]->mask == kNone) continue;
      const uint8_t* open = frame.at<uint8_t>(branch_[i]->mask);
      block.branch[i].out_open = block.branch[i + 1].in_open = open;
    }
    set_input(frame, in_, &block.x, block.x_stride);
    block.y = frame.at<T>(out_);
    if (keep_ != kNone) block.keep = frame.at<uint8_t>(keep_);
    if (out_pooled_ != kNone) block.pooled = frame.at<Acc>(out_pooled_);
    if (in_pooled_ != kNone) block.x_pooled = frame.at<Acc>(in_pooled_);
    gated_block(block, frame.threads, frame.parallel_for, frame.workspace);
  }

  int64_t dense_macs() const override {
    int64_t sum = shortcut_ == nullptr ? 0 : shortcut_->dense_macs();
    for (const auto& part : branch_) sum += part->conv.dense_macs();
    return sum;
  }

  int64_t macs(const Frame& frame, int64_t sample) const override {
    if (keep_ != kNone && *(frame.at<uint8_t>(keep_) + sample) == 0) return 0;
    int64_t sum = shortcut_ == nullptr ? 0 : shortcut_->dense_macs();
    int64_t open = branch_[0]->conv.shape.ci;
    for (const auto& part : branch_) {
      const int64_t channels = part->conv.shape.co;
      const int64_t after = count_open(frame, part->mask, sample, channels, part->group_size);
      sum += part->conv.macs(open, after);
      open = after;
    }
    return sum;
  }

 private:
  void add_uses() {
    reads = {in_};
    writes = {out_};
    if (keep_ != kNone) reads.push_back(keep_);
    if (in_pooled_ != kNone) reads.push_back(in_pooled_);
    if (out_pooled_ != kNone) writes.push_back(out_pooled_);
    for (const auto& part : branch_) {
      if (part->mask != kNone) reads.push_back(part->mask);
    }
  }

  GatedBlock<T> args(int64_t n) const {
    GatedBlock<T> block = {};
    block.depth = static_cast<int>(branch_.size());
    block.channels_last = true;
    for (int i = 0; i < block.depth; ++i) {
      block.branch[i] = branch_[i]->conv.args(n);
      block.branch[i].out_group_size = branch_[i]->group_size;
      if (i > 0) block.branch[i].in_group_size = branch_[i - 1]->group_size;
    }
    block.has_shortcut = shortcut_ != nullptr;
    if (block.has_shortcut) block.shortcut = shortcut_->args(n);
    return block;
  }

  const int64_t in_, out_, keep_, in_pooled_, out_pooled_;
  std::vector<std::unique_ptr<BranchConv<T>>> branch_;
  std::unique_ptr<ConvWeights<T>> shortcut_;
};

// y = act(W x + b) of vectors: a 1x1 convolution of an image whose pixels are the samples, so that
// weights are read once for the batch.
class LinearOp : public Op {
 public:
  explicit LinearOp(Words& words)
      : in_(words.value(Kind::kVector, -1, "input")),
        out_(words.value(Kind::kVector, -1, "output")),
        relu_(words.flag("relu")),
        conv_(words, words.graph().values[in_].channels, 1, 1) {
    const Conv2dShape& s = conv_.shape;
    if (s.kh != 1 || s.kw != 1 || s.groups != 1) words.fail("a linear layer has a kernel");
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
    args.relu = relu_;
    args.y = frame.at<float>(out_);
    args.y_stride = frame.stride(out_);
    args.y_sample_stride = frame.n * args.y_stride;
    gated_conv2d(args, frame.threads, frame.parallel_for, frame.workspace);
  }

  int64_t dense_macs() const override { return conv_.dense_macs(); }

 private:
  Conv2dShape shape(int64_t n) const {
    Conv2dShape s = conv_.shape;
    s.w = n;
    return s;
  }

  const int64_t in_, out_;
  const bool relu_;
  const ConvWeights<float> conv_;
};

}  // namespace

template <class T>
std::unique_ptr<Op> read_conv2d(Words& words) {
  return std::make_unique<Conv2dOp<T>>(words);
}

template <class T>
std::unique_ptr<Op> read_block(Words& words) {
  return std::make_unique<BlockOp<T>>(words);
}

std::unique_ptr<Op> read_linear(Words& words) { return std::make_unique<LinearOp>(words); }

template std::unique_ptr<Op> read_conv2d<float>(Words&);
template std::unique_ptr<Op> read_conv2d<bf16>(Words&);
template std::unique_ptr<Op> read_block<float>(Words&);
template std::unique_ptr<Op> read_block<bf16>(Words&);

}  // namespace ddi::engine
