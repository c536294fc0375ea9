// Threads of one session. A call of some microseconds cannot wait for a sleeping thread to wake, so
// threads look for work for a while before they sleep; and nobody waits for a thread that has not
// come: the caller takes whatever tasks are left.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "base/parallel.h"

namespace ddi::engine {

class ThreadPool {
 public:
  // The calling thread is one of them.
  explicit ThreadPool(int64_t threads);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  // body(0) ... body(tasks - 1). Only one call at a time.
  void run(int64_t tasks, Task body);

 private:
  void work();
  bool take(uint64_t ticket);
  void stop();

  // Number of the job in the upper half, tasks that nobody has taken in the lower: who takes a task
  // takes it of the job that it has seen, and a job stays as it is until its last task is done.
  std::atomic<uint64_t> ticket_{0};
  std::atomic<int64_t> unfinished_{0};
  Task body_;

  std::atomic<int> sleepers_{0};
  std::atomic<bool> stopped_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

}  // namespace ddi::engine
