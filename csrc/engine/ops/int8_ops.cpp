// Convolutions and residual blocks in int8, between images of float32: a step quantizes what it
// reads with the scale that calibration found, and its sums become floats again for bias, residual
// and activation.
#include <algorithm>
#include <memory>

#include "base/arena.h"
#include "block/gated_block_int8.h"
#include "block_base.h"
#include "op_kinds.h"
#include "pixels/quantize_pixels.h"
#include "values.h"

namespace ddi::engine {
namespace {

class Conv2dInt8Op : public Op {
 public:
  explicit Conv2dInt8Op(Words& words)
      : in_(words.value(Kind::kImage, -1, "input")),
        out_(words.value(Kind::kImage, -1, "output")),
        residual_(words.optional_value(Kind::kImage, -1, "residual")),
        relu_(words.flag("relu")),
        conv_(words, words.graph().values[in_].channels, words.graph().buffer_of(in_).h,
              words.graph().buffer_of(in_).w) {
    check_result(words, out_, residual_, conv_.shape);
    reads = {in_};
    if (residual_ != kNone) reads.push_back(residual_);
    writes = {out_};
  }

  int64_t workspace_bytes(int64_t n, int64_t threads) const override {
    Conv2dShape shape = conv_.shape;
    shape.n = n;
    const int64_t bytes = gated_conv2d_workspace_bytes<int8_t>(shape, threads);
    return bytes < 0 ? bytes : bytes + image_bytes(n);
  }

  void run(const Frame& frame) const override {
    char* room = static_cast<char*>(frame.workspace);
    int8_t* x = reinterpret_cast<int8_t*>(room);
    const Buffer& b = frame.graph.buffer_of(in_);
    const int64_t channels = conv_.shape.ci;
    quantize_pixels({frame.n, b.pixels(), channels, frame.at<float>(in_), b.numel(), b.channels,
                     conv_.x_scale, nullptr, x},
                    frame.threads, frame.parallel_for);
    GatedConv2d<int8_t> args = conv_.args(frame.n);
    const int64_t stride[4] = {b.pixels() * channels, 1, b.w * channels, channels};
    args.x = x;
    std::copy_n(stride, 4, args.x_stride);
    if (residual_ != kNone) args.residual = frame.at<float>(residual_);
    args.relu = relu_;
    args.y = frame.at<float>(out_);
    const Buffer& y = frame.graph.buffer_of(out_);
    if (y.channels != args.shape.co) {
      args.y_sample_stride = y.numel();
      args.y_stride = y.channels;
    }
    gated_conv2d(args, frame.threads, frame.parallel_for, room + image_bytes(frame.n));
  }

  Work dense_work() const override { return conv_.dense_work(); }

 private:
  int64_t image_bytes(int64_t n) const {
    return round_up(n * conv_.shape.ci * conv_.shape.h * conv_.shape.w, 64);
  }

  const int64_t in_, out_, residual_;
  const bool relu_;
  const ConvWeights<int8_t> conv_;
};

class BlockInt8Op : public BlockBase<int8_t> {
 public:
  explicit BlockInt8Op(Words& words) : BlockBase(words) {
    if (shortcut_ != nullptr && shortcut_->x_scale != branch_[0]->conv.x_scale) {
      words.fail("branch and shortcut read their input at different scales");
    }
  }

  int64_t workspace_bytes(int64_t n, int64_t threads) const override {
    return gated_block_int8_workspace_bytes(args(n), threads);
  }

  void run(const Frame& frame) const override {
    if (skips_all(frame)) return;
    GatedBlockInt8 block = args(frame.n);
    set_masks(frame, block.branch);
    block.x = frame.at<float>(in_);
    block.y = frame.at<float>(out_);
    if (keep_ != kNone) block.keep = frame.at<uint8_t>(keep_);
    if (out_pooled_ != kNone) block.pooled = frame.at<float>(out_pooled_);
    if (in_pooled_ != kNone) block.x_pooled = frame.at<float>(in_pooled_);
    gated_block_int8(block, frame.threads, frame.parallel_for, frame.workspace);
  }

 private:
  GatedBlockInt8 args(int64_t n) const {
    GatedBlockInt8 block = {};
    block.depth = depth();
    for (int i = 0; i < block.depth; ++i) {
      block.branch[i] = branch_conv(i, n);
      block.x_scale[i] = branch_[i]->conv.x_scale;
    }
    block.has_shortcut = shortcut_ != nullptr;
    if (block.has_shortcut) block.shortcut = shortcut_->masked(n);
    return block;
  }
};

}  // namespace

std::unique_ptr<Op> read_conv2d_int8(Words& words) { return std::make_unique<Conv2dInt8Op>(words); }

std::unique_ptr<Op> read_block_int8(Words& words) { return std::make_unique<BlockInt8Op>(words); }

}  // namespace ddi::engine
