// What a run may still do within its limits, and whether its answer is certain enough to halt. Work
// is counted, so that its limits hold exactly; time is foretold by what opening the session took.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "session.h"

namespace ddi::engine {
namespace {

// Of one image, to foretell times: at most so many, and no more than fit into so long, but two.
constexpr int kPasses = 16;
constexpr double kPassesMs = 4;
// Times foretold are times measured, which other work of the machine may make too short, by a
// margin. It rises with each late run by what so many in time take back: about one in 400 is late.
constexpr double kFirstMargin = 1.5, kLeastMargin = 1.1, kMostMargin = 4, kRise = 0.2,
                 kFall = kRise / 400;

std::string number(double v) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.9g", v);
  return text;
}

bool is_natural(double v) { return v >= 0 && std::isfinite(v); }

// Of two the smaller: a lost core must not be taken for what is usual.
double median(std::vector<double>& values) {
  const auto at = values.begin() + static_cast<int64_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

}  // namespace

// Runs images of zeros, everything open, for the usual times of steps and exits.
void Session::measure() {
  const Buffer& input = network_->input();
  const std::vector<float> zeros(static_cast<size_t>(input.numel()));
  const std::vector<uint8_t> open(static_cast<size_t>(network_->decision_bytes()), uint8_t{1});
  std::vector<float> logits(static_cast<size_t>(network_->classes()));
  const Images images{zeros.data(), 1, {0, 1, input.w * input.channels, input.channels}};
  RunOptions options;
  options.decisions = open.data();
  options.trace = true;
  const Frame f = frame(images);
  const auto& exits = network_->exits();
  std::vector<std::vector<double>> step_times(step_ms_.size()), exit_times(exits.size());
  double fastest = kPassesMs;
  for (int pass = 0; pass < 2 || (pass < kPasses && pass * fastest < kPassesMs); ++pass) {
    run(images, logits.data(), options);
    for (size_t i = 0; i < step_times.size(); ++i) step_times[i].push_back(step_ms_[i]);
    for (size_t i = 0; i < exits.size(); ++i) {
      const double before = elapsed_ms();
      for (const auto& op : exits[i].steps) op->run(f);
      exit_times[i].push_back(elapsed_ms() - before);
    }
    fastest = std::min(fastest, elapsed_ms());
  }
  std::transform(step_times.begin(), step_times.end(), step_worst_ms_.begin(), median);
  std::transform(exit_times.begin(), exit_times.end(), exit_worst_ms_.begin(), median);
  size_t step = 0;
  for (size_t i = 0; i < exits.size(); ++i) {
    const auto end = static_cast<size_t>(exits[i].position);
    double ahead = exit_worst_ms_[i];
    for (size_t s = end; s-- > step;) ahead_ms_[s] = ahead += step_worst_ms_[s];
    step = end;
  }
  margin_ = kFirstMargin;
}

void Session::adjust_margin(bool late) {
  margin_ = std::clamp(margin_ + (late ? kRise : -kFall), kLeastMargin, kMostMargin);
}

void Session::check_options(const RunOptions& options) const {
  const double* energy = options.energy;
  const bool known = !(energy[0] < 0);
  if (known && !std::all_of(energy, energy + 3, is_natural)) {
    refuse("energy is " + number(energy[0]) + ", " + number(energy[1]) + ", " + number(energy[2]) +
           "; expected three finite numbers from 0 on");
  }
  if (std::isnan(options.deadline_ms)) refuse("deadline_ms is nan; expected milliseconds");
  if (!(options.max_joules < 0) && !is_natural(options.max_joules)) {
    refuse("max_joules is " + number(options.max_joules) + "; expected finite joules");
  }
  if (options.max_joules >= 0 && !known) refuse("max_joules comes without energy");
  if (!(options.confidence <= 1)) {
    refuse("confidence is " + number(options.confidence) + "; expected a probability, at most 1");
  }
  const Work& first = network_->exits().front().worst_work;
  if (options.max_macs >= 0 && first.macs > options.max_macs) {
    refuse("no exit fits into " + std::to_string(options.max_macs) + " MACs: the first may take " +
           std::to_string(first.macs));
  }
  if (options.max_joules >= 0 && engine::joules(first, energy) > options.max_joules) {
    refuse("no exit fits into " + number(options.max_joules) + " joules: the first may take " +
           number(engine::joules(first, energy)));
  }
}

// What an answer of this exit takes; nothing where it has answered already.
Work Session::exit_work(int64_t exit) const {
  return exit == answered_ ? Work{} : network_->exits()[static_cast<size_t>(exit)].own_work;
}

double Session::exit_ms(int64_t exit, int64_t n) const {
  if (exit == answered_) return 0;
  return static_cast<double>(n) * exit_worst_ms_[static_cast<size_t>(exit)];
}

// Whether each sample may do so much on top of what it has spent.
bool Session::in_limits(const Works& spent, int64_t n, const Work& more,
                        const RunOptions& options) const {
  return std::all_of(spent.begin(), spent.begin() + n, [&](Work work) {
    work += more;
    return (options.max_macs < 0 || work.macs <= options.max_macs) &&
           (options.max_joules < 0 || engine::joules(work, options.energy) <= options.max_joules);
  });
}

bool Session::in_time(double more_ms, const RunOptions& options) const {
  return options.deadline_ms < 0 || elapsed_ms() + margin_ * more_ms <= options.deadline_ms;
}

// Whether the run may leave the last exit for this one, which it has come to. It must where the
// last one's answer is out of the limits, however late it is: work was spent on the way because
// this exit is certain to be within them.
bool Session::may_pass(int64_t exit, int64_t n, const RunOptions& options) const {
  if (exit_ < 0) return true;
  if (in_limits(work_, n, exit_work(exit), options) && in_time(exit_ms(exit, n), options)) {
    return true;
  }
  return !in_limits(work_, n, exit_work(exit_), options);
}

// Whether this step may be run: all that leads to the next exit is in the limits, or the answer of
// the last one still is behind the step. Before the first exit a run cannot halt.
bool Session::may_run(int64_t step, int64_t n, const RunOptions& options) const {
  const bool limited = options.max_macs >= 0 || options.max_joules >= 0 || options.deadline_ms >= 0;
  if (exit_ < 0 || !limited) return true;
  const auto i = static_cast<size_t>(step);
  const auto samples = static_cast<double>(n);
  if (in_limits(work_, n, network_->work_ahead(step), options) &&
      in_time(samples * ahead_ms_[i], options)) {
    return true;
  }
  if (in_limits(work_then_, n, exit_work(exit_), options) &&
      in_time(samples * step_worst_ms_[i] + exit_ms(exit_, n), options)) {
    return true;
  }
  return !in_limits(work_, n, exit_work(exit_), options);
}

// Whether the largest of a sample's probabilities, its logits' softmax, is at least `confidence`.
// With NaN among the logits it never is.
bool Session::is_certain(const float* logits, double confidence) const {
  const int64_t classes = network_->classes();
  const double most = *std::max_element(logits, logits + classes);
  double sum = 0;
  for (int64_t c = 0; c < classes; ++c) sum += std::exp(static_cast<double>(logits[c]) - most);
  return 1 / sum >= confidence;
}

}  // namespace ddi::engine
