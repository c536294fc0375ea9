// What residual blocks of all types share: how they are read and checked, and what they cost. How
// they run is left to the types, which differ in what their interiors are.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "conv_weights.h"
#include "values.h"

namespace ddi::engine {

// One convolution of a residual branch, and the mask of its outputs.
template <class T>
struct BranchConv {
  BranchConv(Words& words, int64_t ci, int64_t h, int64_t w, bool last)
      : mask(last ? kNone : words.optional_value(Kind::kBits, -1, "mask")),
        group_size(last ? 1 : words.integer(1, kMaxPlanSize, "group size")),
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
class BlockBase : public Op {
 public:
  explicit BlockBase(Words& words)
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
    if (keep_ != kNone) check_whole(words, keep_, "keep");
    if (in_pooled_ != kNone) check_whole(words, in_pooled_, "pooled input");
    if (out_pooled_ != kNone) check_whole(words, out_pooled_, "pooled output");
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
    const bool in_place = words.graph().values[in_].buffer == words.graph().values[out_].buffer;
    if (in_place && shortcut_ != nullptr) words.fail("a block with a shortcut is in place");
    add_uses();
  }

  Work dense_work() const override {
    Work sum = shortcut_ == nullptr ? Work{} : shortcut_->dense_work();
    for (const auto& part : branch_) sum += part->conv.dense_work();
    return sum;
  }

  Work work(const Frame& frame, int64_t sample) const override {
    if (keep_ != kNone && *(frame.at<uint8_t>(keep_) + sample) == 0) return {};
    Work sum = shortcut_ == nullptr ? Work{} : shortcut_->dense_work();
    int64_t open = branch_[0]->conv.shape.ci;
    for (const auto& part : branch_) {
      const int64_t channels = part->conv.shape.co;
      const int64_t after = count_open(frame, part->mask, sample, channels, part->group_size);
      sum += part->conv.work(open, after);
      open = after;
    }
    return sum;
  }

 protected:
  int depth() const { return static_cast<int>(branch_.size()); }

  // Convolution `i` of the branch, but for its masks.
  MaskedConv<T> branch_conv(int i, int64_t n) const {
    MaskedConv<T> conv = branch_[i]->conv.masked(n);
    conv.out_group_size = branch_[i]->group_size;
    if (i > 0) conv.in_group_size = branch_[i - 1]->group_size;
    return conv;
  }

  // Those of a frame, for the convolutions of the branch.
  void set_masks(const Frame& frame, MaskedConv<T>* branch) const {
    for (int i = 0; i < depth(); ++i) {
      if (branch_[i]->mask == kNone) continue;
      branch[i].out_open = branch[i + 1].in_open = frame.at<uint8_t>(branch_[i]->mask);
    }
  }

  // Whether every sample skips the block, whose output is then its input: all is done.
  bool skips_all(const Frame& frame) const {
    if (keep_ == kNone || in_ != out_) return false;
    if (out_pooled_ != kNone && in_pooled_ == kNone) return false;
    const uint8_t* keep = frame.at<uint8_t>(keep_);
    if (std::any_of(keep, keep + frame.n, [](uint8_t bit) { return bit != 0; })) return false;
    if (out_pooled_ == kNone) return true;
    const int64_t count = frame.n * frame.stride(in_pooled_);
    std::copy_n(frame.at<float>(in_pooled_), count, frame.at<float>(out_pooled_));
    return true;
  }

  const int64_t in_, out_, keep_, in_pooled_, out_pooled_;
  std::vector<std::unique_ptr<BranchConv<T>>> branch_;
  std::unique_ptr<ConvWeights<T>> shortcut_;

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
};

}  // namespace ddi::engine
