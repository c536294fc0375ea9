#include "session.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <numeric>

#include "base/arena.h"
#include "base/dtypes.h"

namespace ddi::engine {
namespace {

constexpr int64_t kMaxMemory = int64_t{1} << 36;  // of a machine that does not say what it has
constexpr int64_t kMaxBatch = 1 << 16, kMaxThreads = 1024;

// What is promised beyond it is never there, but the system kills whoever uses it.
int64_t machine_memory() {
#if defined(_SC_PHYS_PAGES)
  const int64_t pages = sysconf(_SC_PHYS_PAGES), bytes = sysconf(_SC_PAGESIZE);
  if (pages > 0 && bytes > 0 && pages <= INT64_MAX / bytes) return pages * bytes;
#endif
  return kMaxMemory;
}

int64_t now_ns() {
  using std::chrono::nanoseconds;
  return std::chrono::duration_cast<nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::string number(int64_t v) { return std::to_string(v); }

// The image as the steps read it, [n][h][w][c].
template <class T>
void copy_image(const Images& images, const Buffer& b, T* to) {
  for (int64_t n = 0; n < images.n; ++n) {
    for (int64_t y = 0; y < b.h; ++y) {
      for (int64_t x = 0; x < b.w; ++x) {
        const float* from =
            images.data + n * images.stride[0] + y * images.stride[2] + x * images.stride[3];
        for (int64_t c = 0; c < b.channels; ++c) round_to(from[c * images.stride[1]], to++);
      }
    }
  }
}

// Zeroed, so that the first run does not wait for pages.
Pages zeroed_pages(int64_t bytes) {
  Pages pages = allocate_pages(bytes);
  std::memset(pages.get(), 0, static_cast<size_t>(bytes));
  return pages;
}

}  // namespace

void refuse(const std::string& what) { throw RunError("run: " + what); }

void Session::Parallel::operator()(int64_t tasks, Task body) const {
  if (pool != nullptr) return pool->run(tasks, body);
  for (int64_t i = 0; i < tasks; ++i) body(i);
}

Session::Session(std::shared_ptr<const Network> network, int64_t max_batch, int64_t threads)
    : network_(std::move(network)), max_batch_(max_batch), threads_(threads) {
  if (max_batch < 1 || max_batch > kMaxBatch) {
    refuse("max_batch is " + number(max_batch) + "; expected 1 to " + number(kMaxBatch));
  }
  if (threads < 1 || threads > kMaxThreads) {
    refuse("threads is " + number(threads) + "; expected 1 to " + number(kMaxThreads));
  }
  plan_ = plan_memory(*network_, max_batch);
  const int64_t workspace = most_workspace(), decisions = max_batch * network_->decision_bytes();
  memory_bytes_ = plan_.bytes + workspace + 2 * decisions;
  const int64_t image = network_->input().numel() * static_cast<int64_t>(sizeof(float));
  if (memory_bytes_ > machine_memory() - image) {
    refuse("a session for " + number(max_batch) + " images would take " +
           number(memory_bytes_ >> 20) + " MiB, more than this machine has");
  }
  memory_ = zeroed_pages(plan_.bytes);
  for (const int64_t offset : plan_.offset) {
    buffers_.push_back(offset < 0 ? nullptr : memory_.get() + offset);
  }
  workspace_ = zeroed_pages(workspace);
  const size_t steps = network_->trunk().size();
  for (Works* works : {&work_, &work_then_}) works->resize(static_cast<size_t>(max_batch));
  for (auto* counts : {&order_, &exit_of_, &macs_, &weight_bytes_, &activation_bytes_}) {
    counts->resize(static_cast<size_t>(max_batch));
  }
  joules_.resize(static_cast<size_t>(max_batch));
  decisions_.resize(static_cast<size_t>(decisions));
  bits_.resize(static_cast<size_t>(decisions));
  step_ms_.resize(steps);
  step_worst_ms_.resize(steps);
  ahead_ms_.resize(steps);
  exit_worst_ms_.resize(network_->exits().size());
  int64_t at = 0;
  for (const auto& op : network_->trunk()) {
    decision_at_.push_back(at);
    at += op->decision_bytes();
  }
  if (threads > 1) {
    pool_ = std::make_unique<ThreadPool>(threads);
    parallel_.pool = pool_.get();
  }
  measure();
}

int64_t Session::most_workspace() const {
  int64_t most = 0;
  const auto look = [&](const Steps& steps) {
    for (const auto& op : steps) {
      // The size for fewer samples may be larger: they are cut into smaller pieces.
      for (const int64_t n : {int64_t{1}, std::min(threads_, max_batch_), max_batch_}) {
        const int64_t bytes = op->workspace_bytes(n, threads_);
        if (bytes < 0) refuse("step " + printable(op->name) + " is out of any machine's reach");
        most = std::max(most, bytes);
      }
    }
  };
  look(network_->trunk());
  for (const Exit& exit : network_->exits()) look(exit.steps);
  return most;
}

Frame Session::frame(const Images& images) const {
  const int64_t* s = images.stride;
  return {network_->graph(), buffers_.data(),  images.n,    threads_,
          parallel_,         workspace_.get(), images.data, {s[0], s[1], s[2], s[3]}};
}

double Session::elapsed_ms() const { return static_cast<double>(now_ns() - start_) * 1e-6; }

void Session::run(const Images& images, float* logits, const RunOptions& options) {
  if (images.n < 0 || images.n > max_batch_) {
    refuse("the batch has " + number(images.n) + " images; this session takes up to " +
           number(max_batch_) + ", open one with a larger max_batch");
  }
  start_ = now_ns();
  check_options(options);
  Frame f = frame(images);
  begin(f);
  if (images.n == 0) return report(0, options);
  if (!network_->strided_input()) {
    const int64_t input = network_->input_value();
    if (network_->graph().type == PlanType::kBFloat16) {
      copy_image(images, network_->input(), f.at<bf16>(input));
    } else {
      copy_image(images, network_->input(), f.at<float>(input));
    }
  }
  const int64_t steps = static_cast<int64_t>(network_->trunk().size());
  for (int64_t step = 0;; ++step) {
    if (!reach_exits(f, step, logits, options) || step == steps) break;
    if (!run_step(f, step, options)) break;
  }
  if (answered_ != exit_) answer(f, logits);
  report(images.n, options);
  if (went_on_ && options.deadline_ms >= 0) adjust_margin(elapsed_ms() > options.deadline_ms);
}

void Session::begin(const Frame& f) {
  exit_ = answered_ = -1;
  went_on_ = false;
  std::iota(order_.begin(), order_.begin() + f.n, int64_t{0});
  std::fill_n(work_.begin(), f.n, Work{});
  std::fill(step_ms_.begin(), step_ms_.end(), -1.0);
  std::fill_n(decisions_.begin(), f.n * network_->decision_bytes(), uint8_t{0});
  const Graph& graph = network_->graph();
  for (size_t b = 0; b < buffers_.size(); ++b) {
    if (graph.buffers[b].kind != Kind::kState || buffers_[b] == nullptr) continue;
    const int64_t bytes = f.n * graph.buffers[b].numel() * static_cast<int64_t>(sizeof(float));
    std::memset(buffers_[b], 0, static_cast<size_t>(bytes));
  }
}

// Passes the exits at this position, and asks them if samples may halt where they are certain.
// False if the run must halt at the last one that it has passed.
bool Session::reach_exits(Frame& f, int64_t position, float* logits, const RunOptions& options) {
  const auto& exits = network_->exits();
  for (int64_t next = exit_ + 1; next < static_cast<int64_t>(exits.size()); ++next) {
    if (exits[static_cast<size_t>(next)].position != position) return true;
    if (!may_pass(next, f.n, options)) return false;
    exit_ = next;
    if (options.confidence < 0) continue;
    answer(f, logits);
    halt_certain(f, position, logits, options.confidence);
    if (f.n == 0) return false;
  }
  return true;
}

// Leaves in the frame those samples that the exit at this position, which has answered, is not
// certain of.
void Session::halt_certain(Frame& f, int64_t position, const float* logits, double confidence) {
  int64_t left = 0;
  for (int64_t place = 0; place < f.n; ++place) {
    const int64_t sample = order_[static_cast<size_t>(place)];
    if (is_certain(logits + sample * network_->classes(), confidence)) continue;
    if (left != place) move_sample(place, left, position);
    ++left;
  }
  f.n = left;
}

// Into a place whose own sample has halted: all of it that is read from this position on.
void Session::move_sample(int64_t from, int64_t to, int64_t position) {
  for (size_t b = 0; b < buffers_.size(); ++b) {
    if (buffers_[b] == nullptr || !plan_.lives[b].spans(position)) continue;
    const int64_t bytes = plan_.sample_bytes[b];
    std::memcpy(buffers_[b] + to * bytes, buffers_[b] + from * bytes, static_cast<size_t>(bytes));
  }
  std::swap(work_[static_cast<size_t>(from)], work_[static_cast<size_t>(to)]);
  std::swap(order_[static_cast<size_t>(from)], order_[static_cast<size_t>(to)]);
}

// False if the step was not run, because it would take too much.
bool Session::run_step(const Frame& f, int64_t step, const RunOptions& options) {
  const Op& op = *network_->trunk()[static_cast<size_t>(step)];
  for (size_t n = 0; n < static_cast<size_t>(f.n); ++n) {
    work_then_[n] = work_[n];
    work_then_[n] += op.work(f, static_cast<int64_t>(n));
  }
  if (!may_run(step, f.n, options)) return false;
  went_on_ = exit_ >= 0;
  std::copy_n(work_then_.begin(), f.n, work_.begin());
  const int64_t before = options.trace ? now_ns() : 0;
  op.run(f);
  if (op.decision_bytes() > 0) decide(f, step, options);
  if (options.trace) {
    step_ms_[static_cast<size_t>(step)] = static_cast<double>(now_ns() - before) * 1e-6;
  }
  return true;
}

// Puts the call's bits in the place of those of a gate that has run, if it came with some, and
// notes them for the report.
void Session::decide(const Frame& f, int64_t step, const RunOptions& options) {
  const Op& op = *network_->trunk()[static_cast<size_t>(step)];
  const int64_t at = decision_at_[static_cast<size_t>(step)], count = op.decision_bytes();
  const auto in_call = [&](int64_t place) {
    return order_[static_cast<size_t>(place)] * network_->decision_bytes() + at;
  };
  if (options.decisions != nullptr) {
    for (int64_t place = 0; place < f.n; ++place) {
      std::copy_n(options.decisions + in_call(place), count, bits_.data() + place * count);
    }
    op.write_decision(f, bits_.data(), count);
  }
  op.read_decision(f, bits_.data(), count);
  for (int64_t place = 0; place < f.n; ++place) {
    std::copy_n(bits_.data() + place * count, count, decisions_.data() + in_call(place));
  }
}

void Session::answer(const Frame& f, float* logits) {
  const Exit& exit = network_->exits()[static_cast<size_t>(exit_)];
  for (const auto& op : exit.steps) {
    op->run(f);
    for (int64_t n = 0; n < f.n; ++n) work_[static_cast<size_t>(n)] += op->work(f, n);
  }
  answered_ = exit_;
  const float* from = f.at<float>(exit.output);
  for (int64_t n = 0; n < f.n; ++n) {
    const int64_t sample = order_[static_cast<size_t>(n)];
    exit_of_[static_cast<size_t>(sample)] = exit_;
    std::copy_n(from + n * f.stride(exit.output), network_->classes(),
                logits + sample * network_->classes());
  }
}

void Session::report(int64_t n, const RunOptions& options) {
  has_joules_ = options.energy[0] >= 0;
  for (size_t place = 0; place < static_cast<size_t>(n); ++place) {
    const Work& work = work_[place];
    const auto i = static_cast<size_t>(order_[place]);
    macs_[i] = work.macs;
    weight_bytes_[i] = work.weight_bytes;
    activation_bytes_[i] = work.activation_bytes;
    if (has_joules_) joules_[i] = engine::joules(work, options.energy);
  }
}

}  // namespace ddi::engine
