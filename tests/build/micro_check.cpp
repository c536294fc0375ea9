// Checks the micro-kernels that driver_check.cpp does not reach against the scalar ones, on the
// instruction set named on the command line: random masks and sizes, and the numbers that differ
// between processors.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "base/isa.h"
#include "micro/micro.h"

namespace {

std::mt19937 generator(1);
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

int failed = 0;

void expect(bool good, const char* what) {
  if (!good) std::printf("%s differs\n", what);
  failed += !good;
}

template <class T>
std::vector<T> random_values(int64_t count) {
  std::uniform_real_distribution<float> value(-1, 1);
  std::vector<T> v(count);
  for (T& element : v) ddi::round_to(value(generator), &element);
  return v;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool close(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) != std::isnan(b[i]) || std::abs(a[i] - b[i]) > 1e-5f) return false;
  }
  return true;
}

template <class T>
const ddi::Micro<T>& scalar() {
  const ddi::Isa isa = ddi::current_isa();
  ddi::override_isa(ddi::Isa::kScalar);
  const ddi::Micro<T>& table = ddi::micro<T>();
  ddi::override_isa(isa);
  return table;
}

template <class T>
void check_sum_pixels(int64_t pixels, int64_t channels, const char* what) {
  const int64_t stride = channels + 3;
  const std::vector<T> src = random_values<T>(pixels * stride - 3);
  std::vector<float> sum(channels, kNan), expected(channels);
  ddi::micro<T>().sum_pixels(src.data(), stride, pixels, channels, sum.data());
  scalar<T>().sum_pixels(src.data(), stride, pixels, channels, expected.data());
  expect(close(sum, expected), what);
}

void check_affine_relu(int64_t pixels, int64_t channels) {
  const std::vector<float> scale = random_values<float>(channels);
  const std::vector<float> shift = random_values<float>(channels);
  std::vector<float> data = random_values<float>(pixels * channels);
  data[generator() % data.size()] = kNan;
  std::vector<float> expected = data;
  ddi::micro<float>().affine_relu(pixels, channels, scale.data(), shift.data(), data.data());
  scalar<float>().affine_relu(pixels, channels, scale.data(), shift.data(), expected.data());
  for (size_t i = 0; i < data.size(); ++i) {
    expect(std::isnan(data[i]) || data[i] >= 0, "sign of affine_relu");
  }
  expect(close(data, expected), "affine_relu");
}

void check_scatter_pixels(int64_t pixels, int64_t channels) {
  std::vector<int32_t> index;
  std::vector<uint16_t> bits((channels + 15) / 16);
  const unsigned open_percent = generator() % 101;
  for (int32_t c = 0; c < channels; ++c) {
    if (generator() % 100 >= open_percent) continue;
    index.push_back(c);
    bits[c / 16] = static_cast<uint16_t>(bits[c / 16] | 1u << c % 16);
  }
  const int64_t open = static_cast<int64_t>(index.size()), stride = channels + 2;
  const ddi::ChannelSet set = {channels, open, index.data(), bits.data()};
  const std::vector<float> src = random_values<float>(pixels * open + ddi::kLanes);
  std::vector<float> dst = random_values<float>(pixels * stride - 2), expected = dst;
  ddi::micro<float>().scatter_pixels(src.data(), open, pixels, set, stride, dst.data());
  scalar<float>().scatter_pixels(src.data(), open, pixels, set, stride, expected.data());
  expect(same_bits(dst, expected), "scatter_pixels");
}

void check_quantize(int64_t count) {
  std::vector<float> src = random_values<float>(count);
  for (float& v : src) v *= 20;  // halves, below
  const float odd[] = {kNan,  -kInfinity, kInfinity, 1e30f, -1e30f, 0.0f,
                       -0.0f, 0.25f,      0.75f,     63.7f, 63.8f,  -64.3f};
  for (float v : odd) src[generator() % src.size()] = v;
  for (size_t i = 0; i < src.size(); i += 3) src[i] = std::round(src[i] * 4) / 4;
  std::vector<int8_t> dst(count), expected(count);
  ddi::micro<int8_t>().quantize(src.data(), count, 0.5f, dst.data());
  scalar<int8_t>().quantize(src.data(), count, 0.5f, expected.data());
  expect(dst == expected, "quantize");
}

}  // namespace

// micro_check ISA: exits with 0 if all agree, with 2 if the machine has it not.
int main(int argc, char** argv) {
  ddi::Isa isa;
  if (argc != 2 || !ddi::parse_isa(argv[1], &isa) || isa > ddi::detected_isa()) return 2;
  ddi::override_isa(isa);
  for (int i = 0; i < 200; ++i) {
    const int64_t pixels = 1 + generator() % 9, channels = 1 + generator() % 70;
    check_sum_pixels<float>(pixels, channels, "sum_pixels of float");
    check_sum_pixels<ddi::half>(pixels, channels, "sum_pixels of half");
    check_sum_pixels<ddi::bf16>(pixels, channels, "sum_pixels of bf16");
    check_affine_relu(pixels, channels);
    check_scatter_pixels(pixels, channels);
    check_quantize(pixels * channels);
  }
  return failed == 0 ? 0 : 1;
}
