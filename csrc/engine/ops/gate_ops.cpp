// The gates of a block from its pooled input, in float32 whatever the plan's type is.
#include <algorithm>
#include <cstring>

#include "gate/gate_plan.h"
#include "op_kinds.h"
#include "values.h"

namespace ddi::engine {
namespace {

// A linear layer's weight, [out][in], and bias.
struct Linear {
  Linear() = default;
  Linear(Words& words, int64_t in, int64_t out, const char* what)
      : weight(words.floats(out * in, what)),
        bias(words.floats(out, what)),
        work{out * in, kBytes * out * in, kBytes * (in + out)} {}

  static constexpr int64_t kBytes = sizeof(float);
  std::vector<float> weight, bias;
  Work work;
};

// Writes the layer bit and the channel bits of a block. Its bits for a sample are one after the
// other in a decision: the layer bit if the block can be skipped, then each mask.
class GateOp : public Op {
 public:
  explicit GateOp(Words& words)
      : in_(words.value(Kind::kVector, -1, "input")),
        hidden_(words.integer(0, kMaxPlanSize, "hidden")),
        state_(words.optional_value(Kind::kState, hidden_ == 0 ? -1 : 2 * hidden_, "state")),
        keep_(words.optional_value(Kind::kBits, 1, "keep")),
        threshold_(words.floats(1, "threshold")) {
    const int64_t channels = words.graph().values[in_].channels;
    if ((hidden_ > 0) != (state_ != kNone)) words.fail("a state comes with an LSTM");
    if (hidden_ == 0 && keep_ != kNone) words.fail("a layer bit comes from an LSTM");
    if (hidden_ > 0) {
      project_ = Linear(words, channels, hidden_, "projection");
      input_ = Linear(words, hidden_, 4 * hidden_, "LSTM input weight");
      recurrent_ = Linear(words, hidden_, 4 * hidden_, "LSTM recurrent weight");
    }
    if (keep_ != kNone) layer_ = Linear(words, hidden_, 1, "layer gate");
    const int64_t masks = words.integer(0, 2, "masks");
    for (int64_t i = 0; i < masks; ++i) {
      masks_.push_back(words.value(Kind::kBits, -1, "mask"));
      groups_ += words.graph().values[masks_.back()].channels;
    }
    if (masks > 0) {
      reduced_ = words.integer(1, kMaxPlanSize, "reduced");
      reduce_ = Linear(words, channels + hidden_, reduced_, "channel gate");
      expand_ = Linear(words, reduced_, groups_, "channel gate");
    }
    reads = {in_};
    if (state_ != kNone) writes.push_back(state_);
    if (keep_ != kNone) writes.push_back(keep_);
    writes.insert(writes.end(), masks_.begin(), masks_.end());
  }

  // Scratch memory of the gates, then the bits of a sample.
  int64_t workspace_bytes(int64_t, int64_t) const override {
    return gate_plan_workspace_bytes(weights(), 1) + groups_ + 1;
  }

  void run(const Frame& frame) const override {
    GatePlan<float> plan = {};
    plan.weights = weights();
    plan.samples = 1;
    plan.pixels = 1;
    plan.channels_last = true;
    plan.threshold = threshold_[0];
    plan.open = static_cast<uint8_t*>(frame.workspace) + gate_plan_workspace_bytes(plan.weights, 1);
    plan.keep = plan.open + groups_;
    const auto serial = [](int64_t tasks, const auto& body) {
      for (int64_t i = 0; i < tasks; ++i) body(i);
    };
    for (int64_t n = 0; n < frame.n; ++n) {
      plan.x = frame.at<float>(in_) + n * frame.stride(in_);
      if (state_ != kNone) {
        plan.h_out = frame.at<float>(state_) + n * frame.stride(state_);
        plan.c_out = plan.h_out + hidden_;
        plan.h = plan.h_out;
        plan.c = plan.c_out;
      }
      gate_plan(plan, 1, serial, frame.workspace);
      if (keep_ != kNone) frame.at<uint8_t>(keep_)[n * frame.stride(keep_)] = *plan.keep;
      const uint8_t* open = plan.open;
      for (const int64_t mask : masks_) {
        const int64_t groups = frame.graph.values[mask].channels;
        std::memcpy(frame.at<uint8_t>(mask) + n * frame.stride(mask), open, groups);
        open += groups;
      }
    }
  }

  Work dense_work() const override {
    Work sum;
    for (const Linear* linear : {&project_, &input_, &recurrent_, &layer_, &reduce_, &expand_}) {
      sum += linear->work;
    }
    return sum;
  }

  int64_t decision_bytes() const override { return groups_ + (keep_ != kNone ? 1 : 0); }

  void read_decision(const Frame& frame, uint8_t* bits, int64_t stride) const override {
    each(frame, [&](uint8_t* values, int64_t count, int64_t n, int64_t at) {
      std::memcpy(bits + n * stride + at, values, count);
    });
  }

  void write_decision(const Frame& frame, const uint8_t* bits, int64_t stride) const override {
    each(frame, [&](uint8_t* values, int64_t count, int64_t n, int64_t at) {
      std::memcpy(values, bits + n * stride + at, count);
    });
  }

 private:
  // Calls body(values, count, sample, offset in the decision).
  template <class Body>
  void each(const Frame& frame, const Body& body) const {
    for (int64_t n = 0; n < frame.n; ++n) {
      int64_t at = 0;
      if (keep_ != kNone) body(frame.at<uint8_t>(keep_) + n * frame.stride(keep_), 1, n, at++);
      for (const int64_t mask : masks_) {
        const int64_t groups = frame.graph.values[mask].channels;
        body(frame.at<uint8_t>(mask) + n * frame.stride(mask), groups, n, at);
        at += groups;
      }
    }
  }

  GateWeights<float> weights() const {
    GateWeights<float> w = {};
    w.channels = static_cast<int64_t>(channels());
    w.hidden = hidden_;
    w.project = project_.weight.data();
    w.project_bias = project_.bias.data();
    w.w_ih = input_.weight.data();
    w.b_ih = input_.bias.data();
    w.w_hh = recurrent_.weight.data();
    w.b_hh = recurrent_.bias.data();
    w.layer = keep_ == kNone ? nullptr : layer_.weight.data();
    w.layer_bias = keep_ == kNone ? nullptr : layer_.bias.data();
    w.reduced = reduced_;
    w.groups = groups_;
    w.reduce = reduce_.weight.data();
    w.reduce_bias = reduce_.bias.data();
    w.expand = expand_.weight.data();
    w.expand_bias = expand_.bias.data();
    return w;
  }

  int64_t channels() const {
    if (hidden_ > 0) return static_cast<int64_t>(project_.weight.size()) / hidden_;
    return static_cast<int64_t>(reduce_.weight.size()) / std::max<int64_t>(reduced_, 1);
  }

  const int64_t in_, hidden_, state_, keep_;
  const std::vector<float> threshold_;
  Linear project_, input_, recurrent_, layer_, reduce_, expand_;
  std::vector<int64_t> masks_;
  int64_t groups_ = 0, reduced_ = 0;
};

// Sets bits: channels that no gate closes.
class OpenAllOp : public Op {
 public:
  explicit OpenAllOp(Words& words) : out_(words.value(Kind::kBits, -1, "output")) {
    writes = {out_};
  }

  void run(const Frame& frame) const override {
    for (int64_t n = 0; n < frame.n; ++n) {
      std::memset(frame.at<uint8_t>(out_) + n * frame.stride(out_), 1,
                  static_cast<size_t>(frame.graph.values[out_].channels));
    }
  }

 private:
  const int64_t out_;
};

}  // namespace

std::unique_ptr<Op> read_gate(Words& words) { return std::make_unique<GateOp>(words); }
std::unique_ptr<Op> read_open_all(Words& words) { return std::make_unique<OpenAllOp>(words); }

}  // namespace ddi::engine
