// Checks the torch-free drivers against a plain loop: random shapes, masks, strides and epilogues,
// on the instruction set named on the command line, with one thread and with three. Every buffer is
// exactly as large as the interface asks for, so that a sanitizer sees each access out of bounds.
// AMX is emulated on processors that have all levels below it.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <type_traits>
#include <vector>

#include "base/isa.h"
#include "conv/gated_conv2d.h"
#include "conv/prepack_conv2d.h"
#if defined(__x86_64__)
#include "amx_emulation.h"
#endif

namespace {

std::mt19937 generator(1);

int64_t pick(std::initializer_list<int64_t> values) {
  return values.begin()[generator() % values.size()];
}

// Any int8, else numbers between -1 and 1.
template <class T>
std::vector<T> random_values(int64_t count) {
  std::uniform_real_distribution<double> value(-1, 1);
  std::vector<T> v(count);
  for (T& element : v) {
    if constexpr (std::is_same<T, int8_t>::value) {
      element = static_cast<int8_t>(generator() % 256);
    } else {
      using Wide = decltype(ddi::to_float(element));
      ddi::round_to(static_cast<Wide>(value(generator)), &element);
    }
  }
  return v;
}

double number(double v) { return v; }
double number(ddi::half v) { return ddi::to_float(v); }
double number(ddi::bf16 v) { return ddi::to_float(v); }

// What no kernel may use.
template <class T>
T poison() {
  if constexpr (std::is_same<T, int8_t>::value) {
    return 99;
  } else {
    T nan;
    using Wide = decltype(ddi::to_float(nan));
    ddi::round_to(std::numeric_limits<Wide>::quiet_NaN(), &nan);
    return nan;
  }
}

std::vector<uint8_t> random_mask(int64_t count) {
  const unsigned open_percent = static_cast<unsigned>(pick({0, 10, 50, 90, 100}));
  std::vector<uint8_t> mask(count);
  for (uint8_t& bit : mask) bit = generator() % 100 < open_percent;
  return mask;
}

void serial(int64_t tasks, ddi::Task body) {
  for (int64_t i = 0; i < tasks; ++i) body(i);
}

void threaded(int64_t tasks, ddi::Task body) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < tasks; ++i) threads.emplace_back(body, i);
  for (std::thread& t : threads) t.join();
}

template <class T>
struct Case {
  ddi::Conv2dShape s;
  int64_t in_group, out_group;
  bool channels_last, x_channels_last, relu;
  std::vector<uint8_t> in_open, out_open;
  using Acc = typename ddi::Types<T>::Acc;
  std::vector<T> x, weight;
  std::vector<typename ddi::Types<T>::Cell> packed;
  std::vector<Acc> bias, factor, scale;
  std::vector<typename ddi::Types<T>::Out> residual;

  int64_t at(int64_t n, int64_t c, int64_t y, int64_t x_, int64_t channels, int64_t h,
             int64_t w) const {
    return channels_last ? ((n * h + y) * w + x_) * channels + c
                         : ((n * channels + c) * h + y) * w + x_;
  }

  int64_t at_x(int64_t n, int64_t c, int64_t y, int64_t x_) const {
    return x_channels_last ? ((n * s.h + y) * s.w + x_) * s.ci + c
                           : ((n * s.ci + c) * s.h + y) * s.w + x_;
  }
};

int64_t groups(int64_t channels, int64_t size) { return (channels + size - 1) / size; }

template <class T>
Case<T> random_case() {
  Case<T> c;
  ddi::Conv2dShape& s = c.s;
  do {
    const int64_t k = pick({1, 3, 5});
    s = {pick({0, 1, 2, 5}),
         pick({1, 3, 16, 17, 40, 64}),
         pick({1, 5, 9, 20}),
         pick({1, 7, 16, 27}),
         pick({1, 5, 16, 33, 80}),
         k,
         pick({1, k}),
         pick({1, 2}),
         pick({1, 2}),
         pick({0, 1, 2}),
         pick({0, 1, 3}),
         pick({1, 2}),
         pick({1, 2})};
  } while (s.h + 2 * s.pad_h <= s.dilation_h * (s.kh - 1) ||
           s.w + 2 * s.pad_w <= s.dilation_w * (s.kw - 1));
  // Enough of the few that Winograd's transforms are for.
  s.winograd = std::is_same<typename ddi::Types<T>::Cell, float>::value && pick({0, 0, 1});
  const bool strided = s.winograd && pick({0, 0, 1});
  if (strided) {
    s = {s.n,
         pick({1, 3, 5}),
         pick({23, 34}),
         pick({24, 37}),
         pick({16, 33}),
         7,
         7,
         2,
         2,
         s.pad_h,
         s.pad_w,
         1,
         1};
    s.winograd = true;
  } else if (s.winograd) {
    s = {s.n,
         pick({16, 40, 130}),
         pick({5, 9, 20}),
         pick({7, 16, 27}),
         pick({16, 33, 64}),
         3,
         3,
         1,
         1,
         s.pad_h,
         s.pad_w,
         1,
         1};
    s.winograd = true;
  }
  s.groups = s.winograd ? 1 : pick({1, 1, 2, s.ci});
  s.ci = s.groups == 2 ? 2 * s.ci : s.ci;
  s.co = s.groups == 2 ? 2 * s.co : s.groups > 2 ? s.ci * pick({1, 1, 2}) : s.co;
  c.in_group = pick({1, 3, 8, 16});
  c.out_group = pick({1, 3, 8, 16});
  c.channels_last = pick({0, 1});
  c.x_channels_last = pick({0, 1});
  c.relu = pick({0, 1});
  c.in_open = random_mask(s.n * groups(s.ci, c.in_group));
  c.out_open = random_mask(s.n * groups(s.co, c.out_group));
  if (strided && pick({0, 1, 1})) std::fill(c.in_open.begin(), c.in_open.end(), uint8_t{1});
  c.x = random_values<T>(s.n * s.ci * s.h * s.w);
  c.weight = random_values<T>(s.co * s.group_ci() * s.kh * s.kw);
  using Acc = typename ddi::Types<T>::Acc;
  using Out = typename ddi::Types<T>::Out;
  if (ddi::Types<T>::kInteger) c.factor.assign(s.co, Acc(1) / (1 << 14));
  if (pick({0, 1})) c.bias = random_values<Acc>(s.co);
  if (pick({0, 1})) c.scale = random_values<Acc>(c.out_open.size());
  if (pick({0, 1})) c.residual = random_values<Out>(s.n * s.co * s.out_h() * s.out_w());
  for (int64_t n = 0; n < s.n; ++n) {
    for (int64_t i = 0; i < s.ci; ++i) {
      if (c.in_open[n * groups(s.ci, c.in_group) + i / c.in_group]) continue;
      for (int64_t p = 0; p < s.h * s.w; ++p) {
        c.x[c.at_x(n, i, p / s.w, p % s.w)] = poison<T>();
      }
    }
  }
  const int64_t ci = s.group_ci();
  int64_t numel = ddi::prepack_conv2d_numel<T>(s.co, ci, s.kh, s.kw, s.groups);
  numel += s.winograd ? ddi::winograd_numel(s.co, ci, s.kh, s.kw) : 0;
  c.packed.resize(numel / ddi::Types<T>::kPack);
  const int64_t taps = s.kh * s.kw;
  ddi::prepack_conv2d<T>(
      {s.co, ci, s.kh, s.kw, c.weight.data(), {ci * taps, taps, s.kw, 1}, s.groups, s.winograd},
      serial, c.packed.data());
  return c;
}

template <class T>
double naive(const Case<T>& c, int64_t n, int64_t o, int64_t oy, int64_t ox) {
  const ddi::Conv2dShape& s = c.s;
  double sum = 0;
  const int64_t group = n * groups(s.co, c.out_group) + o / c.out_group;
  if (c.out_open[group]) {
    for (int64_t j = 0; j < s.group_ci(); ++j) {
      const int64_t i = o / s.group_co() * s.group_ci() + j;
      if (!c.in_open[n * groups(s.ci, c.in_group) + i / c.in_group]) continue;
      for (int64_t ky = 0; ky < s.kh; ++ky) {
        for (int64_t kx = 0; kx < s.kw; ++kx) {
          const int64_t y = oy * s.stride_h - s.pad_h + ky * s.dilation_h;
          const int64_t x = ox * s.stride_w - s.pad_w + kx * s.dilation_w;
          if (y < 0 || y >= s.h || x < 0 || x >= s.w) continue;
          sum += number(c.x[c.at_x(n, i, y, x)]) *
                 number(c.weight[((o * s.group_ci() + j) * s.kh + ky) * s.kw + kx]);
        }
      }
    }
    if (!c.factor.empty()) sum *= c.factor[o];
    if (!c.bias.empty()) sum += c.bias[o];
    if (!c.scale.empty()) sum *= c.scale[group];
  }
  if (!c.residual.empty())
    sum += number(c.residual[c.at(n, o, oy, ox, s.co, s.out_h(), s.out_w())]);
  return c.relu && sum < 0 ? 0 : sum;
}

template <class T>
std::vector<typename ddi::Types<T>::Out> run(const Case<T>& c, int64_t threads) {
  using Out = typename ddi::Types<T>::Out;
  const ddi::Conv2dShape& s = c.s;
  std::vector<Out> y(s.n * s.co * s.out_h() * s.out_w(), poison<Out>());
  ddi::GatedConv2d<T> args = {};
  args.shape = s;
  args.x = c.x.data();
  const int64_t image = s.ci * s.h * s.w;
  const int64_t last[] = {image, 1, s.w * s.ci, s.ci}, first[] = {image, s.h * s.w, s.w, 1};
  std::memcpy(args.x_stride, c.x_channels_last ? last : first, sizeof(last));
  args.packed = c.packed.data();
  args.bias = c.bias.empty() ? nullptr : c.bias.data();
  args.factor = c.factor.empty() ? nullptr : c.factor.data();
  args.in_open = c.in_open.data();
  args.in_group_size = c.in_group;
  args.out_open = c.out_open.data();
  args.out_group_size = c.out_group;
  args.scale = c.scale.empty() ? nullptr : c.scale.data();
  args.residual = c.residual.empty() ? nullptr : c.residual.data();
  args.relu = c.relu;
  args.channels_last = c.channels_last;
  args.y = y.data();
  const int64_t bytes = ddi::gated_conv2d_workspace_bytes<T>(s, threads);
  void* workspace = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  std::memset(workspace, 0xff, bytes);
  ddi::gated_conv2d<T>(args, threads, threads == 1 ? serial : threaded, workspace);
  std::free(workspace);
  return y;
}

template <class V>
bool same_bits(const std::vector<V>& a, const std::vector<V>& b) {
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(V)) == 0;
}

template <class T>
std::vector<typename ddi::Types<T>::Out> run_scalar(const Case<T>& c) {
  const ddi::Isa isa = ddi::current_isa();
  ddi::override_isa(ddi::Isa::kScalar);
  const auto y = run(c, 1);
  ddi::override_isa(isa);
  return y;
}

template <class T>
bool check(const Case<T>& c) {
  const ddi::Conv2dShape& s = c.s;
  const auto y = run(c, 1);
  if (!same_bits(y, run(c, 3))) return false;
  if (ddi::Types<T>::kInteger && !same_bits(y, run_scalar(c))) return false;
  // Sums of up to 25 x 64 products of numbers below 1; then half a digit of the result.
  const double tolerance = 1000 * std::numeric_limits<typename ddi::Types<T>::Acc>::epsilon();
  const double digit = std::is_same<T, ddi::bf16>::value   ? 1.0 / 256
                       : std::is_same<T, ddi::half>::value ? 1.0 / 2048
                                                           : 0;
  for (int64_t n = 0; n < s.n; ++n) {
    for (int64_t o = 0; o < s.co; ++o) {
      for (int64_t p = 0; p < s.out_h() * s.out_w(); ++p) {
        const int64_t oy = p / s.out_w(), ox = p % s.out_w();
        const double got = number(y[c.at(n, o, oy, ox, s.co, s.out_h(), s.out_w())]);
        const double expected = naive(c, n, o, oy, ox);
        if (!(std::abs(got - expected) <= tolerance + digit * std::abs(expected))) return false;
      }
    }
  }
  return true;
}

template <class T>
int failures(int cases) {
  int failed = 0;
  for (int i = 0; i < cases; ++i) failed += check(random_case<T>()) ? 0 : 1;
  return failed;
}

// False if the instruction set can neither run nor be emulated.
bool ready(ddi::Isa isa) {
#if defined(__x86_64__)
  if (isa == ddi::Isa::kAvx512Amx && ddi::detected_isa() == ddi::Isa::kAvx512Bf16) {
    amx::emulate();
    return true;
  }
#endif
  return isa <= ddi::detected_isa();
}

}  // namespace

// driver_check ISA CASES: prints the ISA detected, exits with 0 if all cases agree.
int main(int argc, char** argv) {
  ddi::Isa isa;
  if (argc != 3 || !ddi::parse_isa(argv[1], &isa) || !ready(isa)) return 2;
  ddi::override_isa(isa);
  const int cases = std::atoi(argv[2]);
  const int failed = failures<float>(cases) + failures<double>(cases / 4) +
                     failures<ddi::half>(cases / 4) + failures<ddi::bf16>(cases / 2) +
                     failures<int8_t>(cases / 2);
  std::printf("detected %s, ran %s: %d cases, %d failed\n", ddi::isa_name(ddi::detected_isa()),
              argv[1], cases + cases / 4 * 2 + cases / 2 * 2, failed);
#if defined(__x86_64__)
  if (amx::configurations > 0) {
    std::printf("emulated %ld tile products\n", amx::products.load());
    amx::require(amx::configurations == amx::releases, "tiles that were not released");
  }
#endif
  return failed == 0 ? 0 : 1;
}
