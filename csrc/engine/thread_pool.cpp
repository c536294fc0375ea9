#include "thread_pool.h"

#include <chrono>

namespace ddi::engine {
namespace {

constexpr uint64_t kTasks = 0xffffffffu;  // the lower half of a ticket
constexpr auto kPatience = std::chrono::microseconds(200);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int64_t threads) {
  try {
    for (int64_t i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  } catch (...) {  // the system has no more threads; those that run must not outlive this
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stopped_ = true;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t tasks, Task body) {
  if (tasks <= 0) return;
  body_ = body;
  unfinished_.store(tasks, std::memory_order_relaxed);
  const uint64_t job = (ticket_.load(std::memory_order_relaxed) | kTasks) + 1;
  ticket_.store(job | static_cast<uint64_t>(tasks));
  if (sleepers_.load() > 0) {
    const std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  while (take(ticket_.load(std::memory_order_acquire))) {
  }
  while (unfinished_.load(std::memory_order_acquire) != 0) pause();
}

// Whether there was a task left.
bool ThreadPool::take(uint64_t ticket) {
  const uint64_t left = ticket & kTasks;
  if (left == 0) return false;
  if (ticket_.compare_exchange_strong(ticket, ticket - 1, std::memory_order_acq_rel)) {
    body_(static_cast<int64_t>(left) - 1);
    unfinished_.fetch_sub(1, std::memory_order_acq_rel);
  }
  return true;
}

void ThreadPool::work() {
  using Clock = std::chrono::steady_clock;
  while (!stopped_) {
    const auto until = Clock::now() + kPatience;
    while (!stopped_ && Clock::now() < until) {
      while (take(ticket_.load(std::memory_order_acquire))) {
      }
      pause();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    ++sleepers_;
    wake_.wait(lock, [this] { return stopped_ || (ticket_.load() & kTasks) != 0; });
    --sleepers_;
  }
}

}  // namespace ddi::engine
