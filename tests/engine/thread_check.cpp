// Sessions of one network in threads of their own, half of them with threads of their own again;
// built with ThreadSanitizer. Prints how many results differ from those of one thread.
//   thread_check PLAN...
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "network.h"
#include "session.h"

namespace {

using ddi::engine::Images;
using ddi::engine::Network;
using ddi::engine::RunOptions;
using ddi::engine::Session;

constexpr int kThreads = 4, kRuns = 10;
constexpr int64_t kBatch = 3;

int check(const char* path) {
  const std::vector<uint8_t> plan = ddi::engine::read_file(path);
  const auto network = std::make_shared<const Network>(plan.data(), plan.size());
  const ddi::engine::Buffer& input = network->input();
  std::vector<float> data(static_cast<size_t>(kBatch * input.numel()));
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(i % 13) / 6 - 1;
  const Images images = {data.data(), kBatch, {input.numel(), input.pixels(), input.w, 1}};
  const size_t numel = static_cast<size_t>(kBatch * network->classes());
  std::vector<float> expected(numel);
  Session(network, kBatch, 1).run(images, expected.data(), RunOptions());
  int wrong[kThreads] = {};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      Session session(network, kBatch, 1 + t % 2);
      std::vector<float> logits(numel);
      for (int i = 0; i < kRuns; ++i) {
        session.run(images, logits.data(), RunOptions());
        wrong[t] += std::memcmp(logits.data(), expected.data(), numel * sizeof(float)) != 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  int sum = 0;
  for (const int count : wrong) sum += count;
  return sum;
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const int wrong = check(argv[i]);
    std::printf("%s: %d wrong of %d\n", argv[i], wrong, kThreads * kRuns);
    if (wrong != 0) return 1;
  }
  return 0;
}
