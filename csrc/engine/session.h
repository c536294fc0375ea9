// Runs a network: the memory of its values, its threads, and what the last run did. One session is
// for one thread at a time; a network may have any number of them. Nothing is allocated after
// construction. What a run may spend is decided in budget.cpp, all else in session.cpp.
#pragma once

#include <memory>
#include <vector>

#include "memory_plan.h"
#include "network.h"
#include "thread_pool.h"

namespace ddi::engine {

// A call that cannot be served. The message says why.
class RunError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

[[noreturn]] void refuse(const std::string& what);

// Images of the network's size, float32, at any strides, in elements.
struct Images {
  const float* data;
  int64_t n;
  int64_t stride[4];  // of n, c, h, w
};

// Limits may be combined; all of them hold.
struct RunOptions {
  int64_t max_macs = -1;    // of every sample, gates and classifiers included; negative: no limit
  double max_joules = -1;   // of every sample, by `energy`; negative: no limit
  double deadline_ms = -1;  // from the start of the call; negative: none
  // Joules per multiply-add, byte of weights and byte of activations; the first negative: unknown.
  double energy[3] = {-1, -1, -1};
  // Each sample halts at the first exit where its largest probability is at least this, and the run
  // goes on with the others; negative: only limits make it halt.
  double confidence = -1;
  // [n][decision_bytes] bits that take the place of what the gates decide, or nullptr. The gates
  // run all the same.
  const uint8_t* decisions = nullptr;
  bool trace = false;  // take the time of every step
};

class Session {
 public:
  Session(std::shared_ptr<const Network> network, int64_t max_batch, int64_t threads);

  // logits is [n][classes].
  void run(const Images& images, float* logits, const RunOptions& options);

  const Network& network() const { return *network_; }
  int64_t max_batch() const { return max_batch_; }
  int64_t memory_bytes() const { return memory_bytes_; }

  // Of the last run: the deepest exit that answered; of each sample the one that did, what was done
  // and the bits that its gates decided, 0 for those that were not asked; with a trace of each step
  // of the trunk its milliseconds, negative if it was not run.
  int64_t exit() const { return exit_; }
  const int64_t* exits() const { return exit_of_.data(); }
  const int64_t* macs() const { return macs_.data(); }
  const int64_t* weight_bytes() const { return weight_bytes_.data(); }
  const int64_t* activation_bytes() const { return activation_bytes_.data(); }
  // nullptr without options.energy.
  const double* joules() const { return has_joules_ ? joules_.data() : nullptr; }
  const uint8_t* decisions() const { return decisions_.data(); }
  const double* step_ms() const { return step_ms_.data(); }

 private:
  // Calls the threads, or the tasks one after the other.
  struct Parallel {
    void operator()(int64_t tasks, Task body) const;
    ThreadPool* pool;
  };

  int64_t most_workspace() const;
  Frame frame(const Images& images) const;
  void begin(const Frame& frame);
  bool run_step(const Frame& frame, int64_t step, const RunOptions& options);
  void decide(const Frame& frame, int64_t step, const RunOptions& options);
  bool reach_exits(Frame& frame, int64_t position, float* logits, const RunOptions& options);
  void answer(const Frame& frame, float* logits);
  void halt_certain(Frame& frame, int64_t position, const float* logits, double confidence);
  void move_sample(int64_t from, int64_t to, int64_t position);
  void report(int64_t n, const RunOptions& options);

  // budget.cpp
  void measure();
  void adjust_margin(bool late);
  using Works = std::vector<Work>;  // of each sample
  void check_options(const RunOptions& options) const;
  Work exit_work(int64_t exit) const;
  double exit_ms(int64_t exit, int64_t n) const;
  bool in_limits(const Works& spent, int64_t n, const Work& more, const RunOptions& options) const;
  bool in_time(double more_ms, const RunOptions& options) const;
  bool may_pass(int64_t exit, int64_t n, const RunOptions& options) const;
  bool may_run(int64_t step, int64_t n, const RunOptions& options) const;
  bool is_certain(const float* logits, double confidence) const;
  double elapsed_ms() const;

  std::shared_ptr<const Network> network_;
  int64_t max_batch_, threads_;
  Pages memory_, workspace_;
  int64_t memory_bytes_ = 0;
  std::vector<char*> buffers_;
  MemoryPlan plan_;  // of the buffers
  std::unique_ptr<ThreadPool> pool_;
  Parallel parallel_{nullptr};

  // Of one sample with everything open, for deadlines.
  std::vector<double> step_worst_ms_, exit_worst_ms_, ahead_ms_;
  double margin_ = 1;  // by which these are taken to be too short

  int64_t exit_ = -1, answered_ = -1;  // the last exit that was reached, and that gave the logits
  // Of each place in the buffers the sample there. Those that go on come first, in their order.
  std::vector<int64_t> order_;
  Works work_, work_then_;  // of each place: up to now, and behind the next step
  // Of each sample, in the order of the call.
  std::vector<int64_t> exit_of_;
  std::vector<int64_t> macs_, weight_bytes_, activation_bytes_;
  std::vector<double> joules_;
  bool has_joules_ = false;
  std::vector<uint8_t> decisions_;
  std::vector<uint8_t> bits_;  // those of one step, of each place
  std::vector<double> step_ms_;
  std::vector<int64_t> decision_at_;  // of each step, in a sample's decisions
  int64_t start_ = 0;                 // nanoseconds
  bool went_on_ = false;              // behind the first exit
};

}  // namespace ddi::engine
