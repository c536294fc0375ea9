// Convolutions and residual blocks in int8, between images of float32: a step quantizes what it
// reads with the scale that calibration found, and its sums become floats again for bias, residual
// and activation. Inside a block each convolution writes what the next one reads, as int8.
#include <algorithm>
#include <memory>

#include "base/arena.h"
#include "block/block_result.h"
#include "block_base.h"
#include "conv/conv_chain.h"
#include "op_kinds.h"
#include "pixels/quantize_pixels.h"
#include "values.h"

namespace ddi::engine {
namespace {

// An image of the frame as int8, in `room`; of the kept samples.
void quantize(const Frame& frame, int64_t value, const uint8_t* keep, float scale, int8_t* room) {
  const Buffer& b = frame.graph.buffer_of(value);
  quantize_pixels({frame.n, b.pixels(), frame.graph.values[value].channels, frame.at<float>(value),
                   b.numel(), b.channels, scale, keep, room},
                  frame.threads, frame.parallel_for);
}

// Sets what a convolution reads to a dense int8 image.
void set_input(GatedConv2d<int8_t>& conv, const int8_t* x) {
  const Conv2dShape& s = conv.shape;
  conv.x = x;
  conv.x_stride[0] = s.h * s.w * s.ci;
  conv.x_stride[1] = 1;
  conv.x_stride[2] = s.w * s.ci;
  conv.x_stride[3] = s.ci;
}

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
    quantize(frame, in_, nullptr, conv_.x_scale, x);
    GatedConv2d<int8_t> args = conv_.args(frame.n);
    set_input(args, x);
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

// As gated_block, but that interiors are whole images, of which closed channels are never read.
class BlockInt8Op : public BlockBase<int8_t> {
 public:
  explicit BlockInt8Op(Words& words) : BlockBase(words) {
    if (shortcut_ != nullptr && shortcut_->x_scale != branch_[0]->conv.x_scale) {
      words.fail("branch and shortcut read their input at different scales");
    }
  }

  int64_t workspace_bytes(int64_t n, int64_t threads) const override {
    const int64_t bytes = conv_chain_workspace_bytes(chain(n), threads);
    if (bytes < 0) return bytes;
    Arena arena(nullptr);
    for (int i = 0; i < depth(); ++i) take_input(i, n, arena);
    return bytes + arena.used();
  }

  void run(const Frame& frame) const override {
    if (skips_all(frame)) return;
    Arena arena(frame.workspace);
    ConvChain<int8_t> chain = this->chain(frame.n);
    GatedConv2d<int8_t>* branch = chain.conv + chain.count - depth();
    const float* x = frame.at<float>(in_);
    float* y = frame.at<float>(out_);
    if (keep_ != kNone) chain.keep = frame.at<uint8_t>(keep_);
    int8_t* input = take_input(0, frame.n, arena);
    quantize(frame, in_, chain.keep, branch_[0]->conv.x_scale, input);
    if (shortcut_ != nullptr) {
      set_input(chain.conv[0], input);
      chain.conv[0].y = y;
    }
    set_masks(frame, branch);
    for (int i = 0; i < depth(); ++i) {
      set_input(branch[i], input);
      branch[i].relu = true;
      if (i + 1 == depth()) break;
      branch[i].y_int8 = input = take_input(i + 1, frame.n, arena);
      branch[i].y_scale = branch_[i + 1]->conv.x_scale;
    }
    branch[depth() - 1].y = y;
    branch[depth() - 1].residual = shortcut_ == nullptr ? x : y;
    const Buffer& out = frame.graph.buffer_of(out_);
    const BlockResult<float> result = {
        out.pixels(),
        out.channels,
        true,
        x,
        y,
        in_pooled_ == kNone ? nullptr : frame.at<float>(in_pooled_),
        out_pooled_ == kNone ? nullptr : frame.at<float>(out_pooled_)};
    const auto finish = [&](int64_t sample, bool kept) { result.finish(sample, kept); };
    chain.finish = finish;
    conv_chain(chain, frame.threads, frame.parallel_for, arena.take<char>(0));
  }

 private:
  // The shortcut, if there is one, and the branch.
  ConvChain<int8_t> chain(int64_t n) const {
    ConvChain<int8_t> chain;
    if (shortcut_ != nullptr) chain.conv[chain.count++] = shortcut_->args(n);
    for (int i = 0; i < depth(); ++i) chain.conv[chain.count++] = branch_args(i, n);
    return chain;
  }

  // What convolution `i` of the branch reads.
  int8_t* take_input(int i, int64_t n, Arena& arena) const {
    const Conv2dShape& s = branch_[i]->conv.shape;
    return arena.take<int8_t>(n * s.ci * s.h * s.w);
  }
};

}  // namespace

std::unique_ptr<Op> read_conv2d_int8(Words& words) { return std::make_unique<Conv2dInt8Op>(words); }

std::unique_ptr<Op> read_block_int8(Words& words) { return std::make_unique<BlockInt8Op>(words); }

}  // namespace ddi::engine
