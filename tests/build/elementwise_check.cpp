// Checks what stands between convolutions against plain loops: random sizes, strides, activations
// and windows, NaN among the values, on the instruction set named on the command line, with one
// thread and with three. Every buffer is exactly as large as the interface asks for, so that a
// sanitizer sees each access out of bounds; what lies between pixels must stay as it was.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "allocations.h"
#include "base/isa.h"
#include "pixels/activate_pixels.h"
#include "pixels/copy_pixels.h"
#include "pixels/mean_pixels.h"
#include "pixels/pool2d.h"

namespace {

std::mt19937 generator(1);

int64_t pick(std::initializer_list<int64_t> values) {
  return values.begin()[generator() % values.size()];
}

void serial(int64_t tasks, ddi::Task body) {
  for (int64_t i = 0; i < tasks; ++i) body(i);
}

void threaded(int64_t tasks, ddi::Task body) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < tasks; ++i) threads.emplace_back(body, i);
  for (std::thread& t : threads) t.join();
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// NEON takes denormals as 0 on 32-bit ARM.
#if defined(__arm__)
constexpr float kSmall = 2e-38f;
#else
constexpr float kSmall = 1e-40f;
#endif

// Between -8 and 8, and now and then what floats end with.
float random_value() {
  constexpr float kSpecial[] = {kNan, INFINITY, -INFINITY, 3e38f, -3e38f, 0.0f, -0.0f, kSmall};
  const unsigned i = generator() % 200;
  return i < 8 ? kSpecial[i] : std::uniform_real_distribution<float>(-8, 8)(generator);
}

// A batch of pixels, each `stride` elements apart and the samples as far as that makes them, or a
// bit further; no longer than its last channel.
template <class T>
struct Pixels {
  Pixels(int64_t samples, int64_t pixels, int64_t channels, bool dense)
      : stride(channels + (dense ? 0 : pick({0, 1, 7, 16}))),
        sample_stride(pixels * stride + (dense ? 0 : pick({0, 5}))) {
    if (samples > 0 && pixels > 0) {
      values.resize((samples - 1) * sample_stride + (pixels - 1) * stride + channels);
    }
    for (T& v : values) ddi::round_to(random_value(), &v);
  }

  float at(int64_t n, int64_t p, int64_t c) const {
    return ddi::to_float(values[n * sample_stride + p * stride + c]);
  }
  const T* data() const { return values.data(); }
  T* data() { return values.data(); }

  int64_t stride, sample_stride;
  std::vector<T> values;
};

bool close(float found, float expected, float tolerance) {
  if (std::isnan(expected)) return std::isnan(found);
  if (found == expected) return true;
  // Sigmoids end at e^-87.
  return std::abs(found - expected) <= tolerance * std::abs(expected) + 1e-35f;
}

template <class T>
float rounded(float v) {
  T t;
  ddi::round_to(v, &t);
  return ddi::to_float(t);
}

// Runs call(threads, parallel_for), which writes y, with one thread and with three; then compares
// what it should write with expected(n, p, c) and what it should not with what was there.
template <class T, class Call, class Expected>
bool check(Pixels<T>& y, int64_t samples, int64_t pixels, int64_t channels, float tolerance,
           const Call& call, const Expected& expected) {
  const std::vector<T> before = y.values;
  const long count = allocations;
  call(1, serial);
  if (allocations != count) return false;
  const std::vector<T> once = y.values;
  y.values = before;
  call(3, threaded);
  const size_t bytes = y.values.size() * sizeof(T);
  if (bytes > 0 && std::memcmp(once.data(), y.data(), bytes) != 0) return false;
  std::vector<T> rest = y.values;
  for (int64_t n = 0; n < samples; ++n) {
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t at = n * y.sample_stride + p * y.stride + c;
        if (!close(y.at(n, p, c), rounded<T>(expected(n, p, c)), tolerance)) return false;
        rest[at] = before[at];
      }
    }
  }
  return bytes == 0 || std::memcmp(rest.data(), before.data(), bytes) == 0;
}

double act(ddi::Activation a, double v) {
  switch (a) {
    case ddi::Activation::kNone:
      return v;
    case ddi::Activation::kRelu:
      return v < 0 ? 0 : v;
    case ddi::Activation::kRelu6:
      return v < 0 ? 0 : v > 6 ? 6 : v;
    case ddi::Activation::kHardswish:
      return v * (v + 3 < 0 ? 0 : v + 3 > 6 ? 6 : v + 3) / 6;
    case ddi::Activation::kSilu:
      return v < -1e3 ? 0 : v / (1 + std::exp(-v));
    case ddi::Activation::kSigmoid:
      return 1 / (1 + std::exp(-v));
  }
  return kNan;
}

template <class T>
bool check_activation() {
  const int64_t samples = pick({0, 1, 2, 3}), pixels = pick({1, 9, 49, 300});
  const int64_t channels = pick({1, 3, 8, 16, 17, 33, 64, 200});
  const bool dense = pick({0, 1});
  const Pixels<T> x(samples, pixels, channels, dense), add(samples, pixels, channels, dense);
  Pixels<T> y(samples, pixels, channels, dense);
  const bool by_sample = pick({0, 1}), has_scale = pick({0, 1}), has_shift = pick({0, 1});
  const bool has_add = pick({0, 1});
  std::vector<float> scale(by_sample ? samples * channels : channels), shift(channels);
  for (float& v : scale) v = random_value();
  for (float& v : shift) v = random_value();
  ddi::PixelActivation<T> a = {};
  a.samples = samples;
  a.pixels = pixels;
  a.channels = channels;
  a.x = x.data();
  a.x_sample_stride = x.sample_stride;
  a.x_stride = x.stride;
  a.scale = has_scale ? scale.data() : nullptr;
  a.scale_sample_stride = by_sample ? channels : 0;
  a.shift = has_shift ? shift.data() : nullptr;
  a.add = has_add ? add.data() : nullptr;
  a.add_sample_stride = add.sample_stride;
  a.add_stride = add.stride;
  a.activation = static_cast<ddi::Activation>(generator() % ddi::kActivations);
  a.y = y.data();
  a.y_sample_stride = y.sample_stride;
  a.y_stride = y.stride;
  return check(
      y, samples, pixels, channels, sizeof(T) == 2 ? 1.0f / 128 : 2e-6f,  // one digit either way
      [&](int64_t threads, const ddi::ParallelFor& parallel_for) {
        ddi::activate_pixels(a, threads, parallel_for);
      },
      [&](int64_t n, int64_t p, int64_t c) {
        float v = x.at(n, p, c);
        if (has_scale) v *= scale[by_sample ? n * channels + c : c];
        if (has_shift) v += shift[c];
        if (has_add) v += add.at(n, p, c);
        return static_cast<float>(act(a.activation, v));
      });
}

// What torch computes, element by element.
template <class T>
float pooled(const ddi::Pool2d<T>& a, const Pixels<T>& x, int64_t n, int64_t p, int64_t c) {
  const int64_t top = p / a.out_w * a.stride_h - a.pad_h;
  const int64_t left = p % a.out_w * a.stride_w - a.pad_w;
  const int64_t bottom = std::min(top + a.kernel_h, a.h + a.pad_h);
  const int64_t right = std::min(left + a.kernel_w, a.w + a.pad_w);
  float sum = 0, most = -INFINITY;
  int64_t count = 0;
  for (int64_t y = std::max<int64_t>(top, 0); y < std::min(bottom, a.h); ++y) {
    for (int64_t z = std::max<int64_t>(left, 0); z < std::min(right, a.w); ++z, ++count) {
      const float v = x.at(n, y * a.w + z, c);
      sum += v;
      if (v > most || std::isnan(v)) most = v;
    }
  }
  if (!a.average) return most;
  if (a.count_include_pad) count = (bottom - top) * (right - left);
  return count == 0 ? 0 : sum / static_cast<float>(count);
}

// Windows that fit into the padded image, or that also begin in it.
int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad, bool ceil_mode) {
  const int64_t room = size + 2 * pad - kernel;
  const int64_t out = (room + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  return out - (ceil_mode && (out - 1) * stride >= size + pad);
}

template <class T>
bool check_pool() {
  ddi::Pool2d<T> a = {};
  do {
    a.n = pick({0, 1, 2, 3});
    a.h = pick({1, 2, 7, 9, 28});
    a.w = pick({1, 3, 8, 9, 31});
    a.kernel_h = pick({1, 2, 3, 5});
    a.kernel_w = pick({1, 2, 3, 5});
    a.pad_h = a.kernel_h / 2 * pick({0, 1});
    a.pad_w = a.kernel_w / 2 * pick({0, 1});
  } while (a.h + 2 * a.pad_h < a.kernel_h || a.w + 2 * a.pad_w < a.kernel_w);
  a.channels = pick({1, 3, 8, 16, 17, 40, 64});
  a.stride_h = pick({1, 2, 3});
  a.stride_w = pick({1, 2, 3});
  a.average = pick({0, 1});
  a.count_include_pad = pick({0, 1});
  const bool ceil_mode = pick({0, 1});
  a.out_h = out_size(a.h, a.kernel_h, a.stride_h, a.pad_h, ceil_mode);
  a.out_w = out_size(a.w, a.kernel_w, a.stride_w, a.pad_w, ceil_mode);
  const Pixels<T> x(a.n, a.h * a.w, a.channels, pick({0, 1}));
  Pixels<T> y(a.n, a.out_h * a.out_w, a.channels, pick({0, 1}));
  a.x = x.data();
  a.x_sample_stride = x.sample_stride;
  a.x_stride = x.stride;
  a.y = y.data();
  a.y_sample_stride = y.sample_stride;
  a.y_stride = y.stride;
  return check(
      y, a.n, a.out_h * a.out_w, a.channels, 0,
      [&](int64_t threads, const ddi::ParallelFor& parallel_for) {
        ddi::pool2d(a, threads, parallel_for);
      },
      [&](int64_t n, int64_t p, int64_t c) { return pooled(a, x, n, p, c); });
}

template <class T>
bool check_mean() {
  const int64_t samples = pick({0, 1, 4}), pixels = pick({1, 5, 49, 400});
  const int64_t channels = pick({1, 3, 16, 17, 64, 100});
  Pixels<T> x(samples, pixels, channels, pick({0, 1}));
  // Of one sign, so that digits are those of the sum.
  for (T& v : x.values) {
    const float value = std::abs(ddi::to_float(v));
    ddi::round_to(value > 8 ? 8.0f : value, &v);
  }
  Pixels<float> mean(samples, 1, channels, true);
  return check(
      mean, samples, 1, channels, 1e-5f,
      [&](int64_t threads, const ddi::ParallelFor& parallel_for) {
        const ddi::MeanPixels<T> a = {samples,         pixels,   channels,   x.data(),
                                      x.sample_stride, x.stride, mean.data()};
        ddi::mean_pixels(a, threads, parallel_for);
      },
      [&](int64_t n, int64_t, int64_t c) {
        double sum = 0;
        for (int64_t p = 0; p < pixels; ++p) sum += x.at(n, p, c);
        return static_cast<float>(sum / static_cast<double>(pixels));
      });
}

template <class From, class To>
bool check_copy() {
  const int64_t samples = pick({0, 1, 3}), pixels = pick({1, 9, 300});
  const int64_t channels = pick({1, 3, 8, 16, 17, 40, 200});
  const Pixels<From> x(samples, pixels, channels, pick({0, 1}));
  Pixels<To> y(samples, pixels, channels, pick({0, 1}));
  const ddi::CopyPixels<From, To> a = {samples,  pixels,          channels,
                                       x.data(), x.sample_stride, x.stride,
                                       y.data(), y.sample_stride, y.stride};
  return check(
      y, samples, pixels, channels, 0,
      [&](int64_t threads, const ddi::ParallelFor& parallel_for) {
        ddi::copy_pixels(a, threads, parallel_for);
      },
      [&](int64_t n, int64_t p, int64_t c) { return x.at(n, p, c); });
}

using Check = bool (*)();

constexpr struct {
  const char* name;
  Check run;
} kChecks[] = {
    {"activate_pixels<float>", check_activation<float>},
    {"activate_pixels<bf16>", check_activation<ddi::bf16>},
    {"pool2d<float>", check_pool<float>},
    {"pool2d<bf16>", check_pool<ddi::bf16>},
    {"mean_pixels<float>", check_mean<float>},
    {"mean_pixels<bf16>", check_mean<ddi::bf16>},
    {"copy_pixels<float, float>", check_copy<float, float>},
    {"copy_pixels<bf16, bf16>", check_copy<ddi::bf16, ddi::bf16>},
    {"copy_pixels<float, bf16>", check_copy<float, ddi::bf16>},
    {"copy_pixels<bf16, float>", check_copy<ddi::bf16, float>},
};

}  // namespace

// elementwise_check ISA CASES: exits with 0 if all cases of every driver agree.
int main(int argc, char** argv) {
  ddi::Isa isa;
  if (argc != 3 || !ddi::parse_isa(argv[1], &isa) || isa > ddi::detected_isa()) return 2;
  ddi::override_isa(isa);
  int failed = 0;
  for (const auto& check : kChecks) {
    for (int i = 0; i < std::atoi(argv[2]); ++i) {
      if (check.run()) continue;
      std::printf("%s, case %d\n", check.name, i);
      ++failed;
    }
  }
  std::printf("ran %s: %d failed\n", argv[1], failed);
  return failed == 0 ? 0 : 1;
}
