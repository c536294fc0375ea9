// Residual blocks and layers of dense blocks: chains of convolutions whose interiors stay compact.
#include <algorithm>
#include <memory>

#include "base/arena.h"
#include "block/gated_block.h"
#include "block/gated_dense_layer.h"
#include "block_base.h"
#include "op_kinds.h"

namespace ddi::engine {
namespace {

template <class T>
class BlockOp : public BlockBase<T> {
  using Base = BlockBase<T>;
  using Acc = typename Types<T>::Acc;

 public:
  using Base::Base;

  int64_t workspace_bytes(int64_t n, int64_t threads) const override {
    return gated_block_workspace_bytes(args(n), threads);
  }

  void run(const Frame& frame) const override {
    if (this->skips_all(frame)) return;
    GatedBlock<T> block = args(frame.n);
    this->set_masks(frame, block.branch);
    set_input(frame, this->in_, &block.x, block.x_stride);
    block.y = frame.at<T>(this->out_);
    if (this->keep_ != kNone) block.keep = frame.at<uint8_t>(this->keep_);
    if (this->out_pooled_ != kNone) block.pooled = frame.at<Acc>(this->out_pooled_);
    if (this->in_pooled_ != kNone) block.x_pooled = frame.at<Acc>(this->in_pooled_);
    gated_block(block, frame.threads, frame.parallel_for, frame.workspace);
  }

 private:
  GatedBlock<T> args(int64_t n) const {
    GatedBlock<T> block = {};
    block.depth = this->depth();
    block.channels_last = true;
    for (int i = 0; i < block.depth; ++i) block.branch[i] = this->branch_conv(i, n);
    block.has_shortcut = this->shortcut_ != nullptr;
    if (block.has_shortcut) block.shortcut = this->shortcut_->masked(n);
    return block;
  }
};

// A layer of a dense block: new channels behind those of the concatenation that it reads.
template <class T>
class DenseLayerOp : public Op {
 public:
  explicit DenseLayerOp(Words& words)
      : in_(words.value(Kind::kImage, -1, "input")),
        out_(words.value(Kind::kImage, -1, "output")),
        in_mask_(words.optional_value(Kind::kBits, channels(words, in_), "input mask")),
        out_open_(words.optional_value(Kind::kBits, -1, "open groups")),
        group_size_(words.integer(1, kMaxPlanSize, "group size")),
        out_mask_(words.optional_value(Kind::kBits, channels(words, out_), "output mask")),
        out_pooled_(words.optional_value(Kind::kVector, channels(words, out_), "pooled output")),
        scale_(words.floats(channels(words, in_), "scale")),
        shift_(words.floats(channels(words, in_), "shift")),
        conv1_(words, channels(words, in_), image(words, in_).h, image(words, in_).w),
        conv2_(words, conv1_.shape.co, conv1_.shape.out_h(), conv1_.shape.out_w()) {
    if (conv2_.shape.co != channels(words, out_)) words.fail("the output has other channels");
    if (conv1_.shape.groups != 1 || conv2_.shape.groups != 1) words.fail("has convolution groups");
    check_size(words, out_, conv2_.shape.out_h(), conv2_.shape.out_w());
    if (out_open_ != kNone) {
      check_whole(words, out_open_, "open groups");
      if (channels(words, out_open_) != (conv2_.shape.co + group_size_ - 1) / group_size_) {
        words.fail("there is another number of open groups");
      }
    }
    reads = {in_};
    writes = {out_};
    for (const int64_t value : {in_mask_, out_open_}) {
      if (value != kNone) reads.push_back(value);
    }
    for (const int64_t value : {out_mask_, out_pooled_}) {
      if (value != kNone) writes.push_back(value);
    }
  }

  int64_t workspace_bytes(int64_t n, int64_t threads) const override {
    const int64_t bytes = gated_dense_layer_workspace_bytes(args(n), threads);
    if (bytes < 0) return bytes;
    return bytes + dense_bits_bytes(in_mask_, conv1_.shape.ci, n) + pooled_bytes(n);
  }

  void run(const Frame& frame) const override {
    GatedDenseLayer<T> layer = args(frame.n);
    char* room = static_cast<char*>(frame.workspace);
    set_input(frame, in_, &layer.conv1.x, layer.conv1.x_stride);
    if (in_mask_ != kNone) layer.conv1.in_open = dense_bits(frame, in_mask_, room);
    room += dense_bits_bytes(in_mask_, conv1_.shape.ci, frame.n);
    if (out_open_ != kNone) layer.conv2.out_open = frame.at<uint8_t>(out_open_);
    layer.conv2.y = frame.at<T>(out_);
    layer.conv2.y_sample_stride = frame.stride(out_);
    layer.conv2.y_stride = frame.graph.buffer_of(out_).channels;
    float* pooled = reinterpret_cast<float*>(room);
    if (out_pooled_ != kNone) layer.pooled = pooled;
    room += pooled_bytes(frame.n);
    gated_dense_layer(layer, frame.threads, frame.parallel_for, room);
    const int64_t count = conv2_.shape.co;
    for (int64_t n = 0; n < frame.n; ++n) {
      if (out_pooled_ != kNone) {
        float* to = frame.at<float>(out_pooled_) + n * frame.stride(out_pooled_);
        std::copy_n(pooled + n * count, count, to);
      }
      if (out_mask_ != kNone) {
        write_mask(frame, n, frame.at<uint8_t>(out_mask_) + n * frame.stride(out_mask_));
      }
    }
  }

  Work dense_work() const override { return chain_work(conv1_.shape.ci, conv2_.shape.co); }

  Work work(const Frame& frame, int64_t sample) const override {
    const int64_t open = count_open(frame, out_open_, sample, conv2_.shape.co, group_size_);
    if (open == 0) return {};
    return chain_work(count_open(frame, in_mask_, sample, conv1_.shape.ci, 1), open);
  }

 private:
  static int64_t channels(const Words& words, int64_t value) {
    return words.graph().values[value].channels;
  }
  static const Buffer& image(const Words& words, int64_t value) {
    return words.graph().buffer_of(value);
  }

  Work chain_work(int64_t open_in, int64_t open_out) const {
    Work sum = conv1_.work(open_in, conv1_.shape.co);
    sum += conv2_.work(conv2_.shape.ci, open_out);
    return sum;
  }

  // The bit of each new channel.
  void write_mask(const Frame& frame, int64_t sample, uint8_t* bits) const {
    const uint8_t* open = out_open_ == kNone
                              ? nullptr
                              : frame.at<uint8_t>(out_open_) + sample * frame.stride(out_open_);
    for (int64_t c = 0; c < conv2_.shape.co; ++c) {
      bits[c] = open == nullptr ? uint8_t{1} : open[c / group_size_];
    }
  }

  int64_t pooled_bytes(int64_t n) const {
    return out_pooled_ == kNone ? 0 : round_up(n * conv2_.shape.co * 4, 64);
  }

  GatedDenseLayer<T> args(int64_t n) const {
    GatedDenseLayer<T> layer = {};
    layer.conv1 = conv1_.args(n);
    layer.conv1.pre_scale = scale_.data();
    layer.conv1.pre_shift = shift_.data();
    layer.conv2 = conv2_.args(n);
    layer.conv2.out_group_size = group_size_;
    layer.conv2.leave_closed = true;
    return layer;
  }

  const int64_t in_, out_, in_mask_, out_open_, group_size_, out_mask_, out_pooled_;
  const std::vector<float> scale_, shift_;
  const ConvWeights<T> conv1_, conv2_;
};

}  // namespace

template <class T>
std::unique_ptr<Op> read_block(Words& words) {
  return std::make_unique<BlockOp<T>>(words);
}

template <class T>
std::unique_ptr<Op> read_dense_layer(Words& words) {
  return std::make_unique<DenseLayerOp<T>>(words);
}

template std::unique_ptr<Op> read_block<float>(Words&);
template std::unique_ptr<Op> read_block<bf16>(Words&);
template std::unique_ptr<Op> read_dense_layer<float>(Words&);
template std::unique_ptr<Op> read_dense_layer<bf16>(Words&);

}  // namespace ddi::engine
