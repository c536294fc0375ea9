// Runs a network: the memory of its values, its threads, and what the last run did. One session is
// for one thread at a time; a network may have any number of them. Nothing is allocated after
// construction.
#pragma once

#include <memory>
#include <vector>

#include "network.h"
#include "thread_pool.h"

namespace ddi::engine {

// A call that cannot be served. The message says why.
class RunError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Images of the network's size, float32, at any strides, in elements.
struct Images {
  const float* data;
  int64_t n;
  int64_t stride[4];  // of n, c, h, w
};

struct RunOptions {
  int64_t max_macs = -1;    // of every sample, gates and classifier included; negative: no limit
  double deadline_ms = -1;  // from the start of the call; negative: none
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

  // Of the last run: the exit that answered; of each sample its multiply-adds and the bits that its
  // gates decided, 0 for those that were not asked; with a trace of each step of the trunk its
  // milliseconds, negative if it was not run.
  int64_t exit() const { return exit_; }
  const int64_t* macs() const { return macs_.data(); }
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
  bool affordable(const Frame& frame, int64_t step, const RunOptions& options) const;
  struct Cost {
    int64_t macs;
    double ms;
  };
  Cost exit_cost(int64_t exit, int64_t n) const;
  bool fits(const Cost& cost, const RunOptions& options) const;
  bool reach_exits(int64_t position, int64_t n, const RunOptions& options);
  void answer(const Frame& frame, float* logits);
  void measure();
  double elapsed_ms() const;

  std::shared_ptr<const Network> network_;
  int64_t max_batch_, threads_;
  Pages memory_, workspace_;
  int64_t memory_bytes_ = 0;
  std::vector<char*> buffers_;
  std::unique_ptr<ThreadPool> pool_;
  Parallel parallel_{nullptr};

  // Of one sample with everything open, for deadlines.
  std::vector<double> step_worst_ms_, exit_worst_ms_;

  int64_t exit_ = -1;
  std::vector<int64_t> macs_;
  int64_t most_macs_ = 0;  // of macs_
  std::vector<uint8_t> decisions_;
  std::vector<double> step_ms_;
  std::vector<int64_t> decision_at_;  // of each step, in a sample's decisions
  int64_t start_ = 0;                 // nanoseconds
};

}  // namespace ddi::engine
