// Checks the sigmoid and the hyperbolic tangent of the gates' micro-kernels against double: to a
// millionth of their value, on the instruction set named on the command line.
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "base/isa.h"
#include "micro/micro_gate.h"

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kTolerance = 1e-6;

// The next c of a cell with these inputs, one hidden unit after the other.
std::vector<float> next_c(const std::vector<float>& in, const std::vector<float>& forget,
                          const std::vector<float>& cell, float c, std::vector<float>* h) {
  std::vector<float> gates = in;
  gates.insert(gates.end(), forget.begin(), forget.end());
  gates.insert(gates.end(), cell.begin(), cell.end());
  gates.insert(gates.end(), in.size(), kInfinity);
  const std::vector<float> before(in.size(), c);
  std::vector<float> next(in.size());
  h->resize(in.size());
  ddi::gate_micro<float>().lstm(gates.data(), before.data(), static_cast<int64_t>(in.size()),
                                next.data(), h->data());
  return next;
}

bool close(float found, double expected) {
  if (std::isnan(expected)) return std::isnan(found);
  // What is too small for a float to be normal need not have all its digits.
  return std::abs(found - expected) <= kTolerance * std::abs(expected) + 2e-38;
}

int failures(const std::vector<float>& x) {
  const std::vector<float> open(x.size(), kInfinity), closed(x.size(), -kInfinity);
  const std::vector<float> zero(x.size(), 0.0f);
  std::vector<float> h;
  int failed = 0;
  const std::vector<float> tanh = next_c(open, closed, x, 0, &h);  // 1 * tanh(x) + 0 * 0
  for (size_t i = 0; i < x.size(); ++i) {
    failed += !close(tanh[i], std::tanh(static_cast<double>(x[i])));
    failed += !close(h[i], std::tanh(static_cast<double>(tanh[i])));
  }
  const std::vector<float> sigmoid = next_c(closed, x, zero, 1, &h);  // sigmoid(x) * 1 + 0 * 0
  for (size_t i = 0; i < x.size(); ++i) {
    failed += !close(sigmoid[i], 1 / (1 + std::exp(-static_cast<double>(x[i]))));
  }
  return failed;
}

}  // namespace

// gate_check ISA: exits with 0 if all values are close.
int main(int argc, char** argv) {
  ddi::Isa isa;
  if (argc != 2 || !ddi::parse_isa(argv[1], &isa) || isa > ddi::detected_isa()) return 2;
  ddi::override_isa(isa);
  std::vector<float> x = {0,      1e-30f,    1e-6f,      -1e-6f,  86.9f,    87.1f, -86.9f,
                          -87.1f, kInfinity, -kInfinity, 3.4e38f, -3.4e38f, NAN};
  for (float v = -90; v < 90; v += 1.0f / 512) x.push_back(v);
  for (float v = 1; v > 1e-20f; v *= 0.97f) {
    x.push_back(v);
    x.push_back(-v);
  }
  const int failed = failures(x);
  std::printf("ran %s: %zu values, %d failed\n", argv[1], x.size(), failed);
  return failed == 0 ? 0 : 1;
}
