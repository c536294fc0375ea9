// The resident stage's kernel, emulated, against plain loops: every shape, gated and not, several
// samples on fewer blocks, threads in several orders. Prints what was compared; exits with 1 at the
// first difference. With an argument it prints addresses instead.
#define DDI_EMULATE
#include "resident_stage.cuh"

namespace {

using emulate::from_bf16;
using emulate::to_bf16;
using Floats = std::vector<float>;
using Words = std::vector<uint16_t>;

std::mt19937 random_bits(1);

float normal(float scale) { return std::normal_distribution<float>(0.f, scale)(random_bits); }

Floats normals(size_t n, float scale) {
  Floats values(n);
  for (float& value : values) value = normal(scale);
  return values;
}

Words rounded(const Floats& values) {
  Words words(values.size());
  for (size_t i = 0; i < words.size(); ++i) words[i] = static_cast<uint16_t>(to_bf16(values[i]));
  return words;
}

struct Form {
  const char* name;
  int samples, blocks, hidden, reduced, groups_of;
  bool layer, channel;
};

template <class S>
struct Case {
  Form form;
  int groups;
  Floats filters[2], biases, gates[12], h, c;
  Words x, packed, y;
  Floats h_next, c_next;
  std::vector<uint8_t> keep, open;
  int queue = 0;

  explicit Case(const Form& f) : form(f), groups((S::C + f.groups_of - 1) / f.groups_of) {
    const int B = f.blocks, C = S::C, H = f.hidden, R = f.reduced;
    const float fan = 1.f / std::sqrt(9.f * C);
    packed.resize(static_cast<size_t>(B) * 2 * S::kFilter);
    for (int i = 0; i < 2; ++i) {
      filters[i] = normals(static_cast<size_t>(B) * S::kFilter, fan);
      for (int b = 0; b < B; ++b)
        for (int tap = 0; tap < 9; ++tap)
          for (int co = 0; co < C; ++co)
            for (int ci = 0; ci < C; ++ci) {
              float& w = filters[i][((b * 9 + tap) * C + co) * C + ci];
              w = from_bf16(to_bf16(w));
              packed[static_cast<size_t>(b * 2 + i) * S::kFilter + tap * C * C +
                     ddi::element<S::C>(co, ci / 8) + ci % 8] = static_cast<uint16_t>(to_bf16(w));
            }
    }
    biases = normals(static_cast<size_t>(B) * 2 * C, 0.2f);
    const size_t sizes[12] = {
        size_t(H * C),           size_t(H),     size_t(4 * H * H),      size_t(4 * H * H),
        size_t(4 * H),           size_t(4 * H), size_t(B * H),          size_t(B),
        size_t(B * R * (C + H)), size_t(B * R), size_t(B * groups * R), size_t(B * groups)};
    for (int i = 0; i < 12; ++i) gates[i] = normals(sizes[i], i == 6 ? 3.f : 0.7f);
    const size_t image = static_cast<size_t>(f.samples) * S::W * S::W * C;
    x = rounded(normals(image, 1.f));
    y.assign(image, 0xffff);
    h = normals(static_cast<size_t>(f.samples) * H, 0.5f);
    c = normals(h.size(), 0.5f);
    h_next.assign(h.size(), NAN);
    c_next = h_next;
    keep.assign(static_cast<size_t>(f.samples) * B, 7);
    open.assign(keep.size() * groups, 7);
  }

  void run(unsigned seed) {
    const auto at = [](const Floats& v, bool there) { return there ? v.data() : nullptr; };
    const ddi::StageGates g{gates[0].data(),
                            gates[1].data(),
                            gates[2].data(),
                            gates[3].data(),
                            gates[4].data(),
                            gates[5].data(),
                            at(gates[6], form.layer),
                            at(gates[7], form.layer),
                            at(gates[8], form.channel),
                            gates[9].data(),
                            gates[10].data(),
                            gates[11].data(),
                            form.hidden,
                            form.reduced,
                            groups,
                            form.groups_of,
                            0.f};
    queue = 0;
    const ddi::StageData d{x.data(), packed.data(), biases.data(), h.data(),    c.data(),
                           y.data(), h_next.data(), c_next.data(), keep.data(), open.data(),
                           &queue,   form.samples,  form.blocks};
    emulate::launch(2, ddi::kStageThreads, ddi::stage_shared_bytes<S>(), seed,
                    [&] { ddi::resident_stage_kernel<S>(d, g); });
  }
};

[[noreturn]] void differ(const Form& f, const char* what, int n, int b, double found,
                         double wanted) {
  std::printf("%s: %s of sample %d, block %d is %g, expected %g\n", f.name, what, n, b, found,
              wanted);
  std::exit(1);
}

double dot(const float* w, const Floats& v) {
  double sum = 0;
  for (size_t i = 0; i < v.size(); ++i) sum += static_cast<double>(w[i]) * v[i];
  return sum;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// The gates in double; bits near the threshold are taken from the kernel.
template <class S>
void decide(Case<S>& k, int n, int b, const Floats& means, Floats& h, Floats& c) {
  const Form& f = k.form;
  const int H = f.hidden, R = f.reduced;
  const auto bit = [&](const char* what, uint8_t found, double logit) {
    if (std::fabs(logit) > 1e-3 && found != (logit > 0)) differ(f, what, n, b, found, logit);
  };
  Floats x(H), z(4 * H), next(H);
  for (int t = 0; t < H; ++t)
    x[t] = static_cast<float>(dot(&k.gates[0][t * S::C], means) + k.gates[1][t]);
  for (int t = 0; t < 4 * H; ++t)
    z[t] = static_cast<float>(dot(&k.gates[2][t * H], x) + dot(&k.gates[3][t * H], h) +
                              k.gates[4][t] + k.gates[5][t]);
  for (int t = 0; t < H; ++t) {
    const double cell = sigmoid(z[H + t]) * c[t] + sigmoid(z[t]) * std::tanh(z[2 * H + t]);
    c[t] = static_cast<float>(cell);
    next[t] = static_cast<float>(sigmoid(z[3 * H + t]) * std::tanh(cell));
  }
  h = next;
  const size_t at = static_cast<size_t>(n) * f.blocks + b;
  const double logit = f.layer ? dot(&k.gates[6][b * H], h) + k.gates[7][b] : 1;
  bit("keep", k.keep[at], logit);
  if (!f.channel) return;
  Floats seen = means, r(R);
  seen.insert(seen.end(), h.begin(), h.end());
  for (int t = 0; t < R; ++t)
    r[t] = std::max(0.f, static_cast<float>(dot(&k.gates[8][(b * R + t) * (S::C + H)], seen) +
                                            k.gates[9][b * R + t]));
  for (int t = 0; t < k.groups; ++t)
    bit("open", k.open[at * k.groups + t],
        dot(&k.gates[10][(b * k.groups + t) * R], r) + k.gates[11][b * k.groups + t]);
}

// relu(conv(in) + bias + shortcut), rounded to bfloat16; channels that `open` closes are 0.
template <class S>
Floats convolve(const Floats& in, const float* w, const float* bias, const Floats* shortcut,
                const std::function<bool(int)>& open) {
  constexpr int C = S::C, W = S::W;
  Floats out(in.size());
  for (int y = 0; y < W; ++y)
    for (int x = 0; x < W; ++x)
      for (int co = 0; co < C; ++co) {
        double sum = bias[co];
        for (int tap = 0; tap < 9; ++tap) {
          const int v = y + tap / 3 - 1, u = x + tap % 3 - 1;
          if (v < 0 || v >= W || u < 0 || u >= W) continue;
          const float* pixel = &in[(v * W + u) * C];
          const float* row = w + (tap * C + co) * C;
          for (int ci = 0; ci < C; ++ci) sum += static_cast<double>(pixel[ci]) * row[ci];
        }
        const int at = (y * W + x) * C + co;
        if (shortcut != nullptr) sum += (*shortcut)[at];
        out[at] = open(co) ? from_bf16(to_bf16(static_cast<float>(std::max(0.0, sum)))) : 0.f;
      }
  return out;
}

template <class S>
void check(Case<S>& k) {
  const Form& f = k.form;
  constexpr int C = S::C, kImage = S::W * S::W * S::C;
  for (int n = 0; n < f.samples; ++n) {
    Floats image(kImage), h(k.h.begin() + n * f.hidden, k.h.begin() + (n + 1) * f.hidden);
    Floats c(k.c.begin() + n * f.hidden, k.c.begin() + (n + 1) * f.hidden);
    for (int i = 0; i < kImage; ++i) image[i] = from_bf16(k.x[n * kImage + i]);
    for (int b = 0; b < f.blocks; ++b) {
      Floats means(C);
      for (int i = 0; i < kImage; ++i) means[i % C] += image[i] / (S::W * S::W);
      decide(k, n, b, means, h, c);
      const size_t at = static_cast<size_t>(n) * f.blocks + b;
      if (!k.keep[at]) continue;
      const auto open = [&](int channel) {
        return !f.channel || k.open[at * k.groups + channel / f.groups_of] != 0;
      };
      const float* bias = &k.biases[b * 2 * C];
      const Floats inside = convolve<S>(image, &k.filters[0][b * S::kFilter], bias, nullptr, open);
      image = convolve<S>(inside, &k.filters[1][b * S::kFilter], bias + C, &image,
                          [](int) { return true; });
    }
    for (int i = 0; i < kImage; ++i) {
      const float found = from_bf16(k.y[n * kImage + i]);
      if (!(std::fabs(found - image[i]) <= 0.02f + 0.02f * std::fabs(image[i])))
        differ(f, "y", n, i, found, image[i]);
    }
    for (int t = 0; t < f.hidden; ++t) {
      if (!(std::fabs(k.h_next[n * f.hidden + t] - h[t]) < 1e-2f))
        differ(f, "h", n, t, k.h_next[n * f.hidden + t], h[t]);
      if (!(std::fabs(k.c_next[n * f.hidden + t] - c[t]) < 1e-2f))
        differ(f, "c", n, t, k.c_next[n * f.hidden + t], c[t]);
    }
  }
}

template <class S>
void check_stage(const char* shape, const std::vector<Form>& forms) {
  for (const Form& f : forms) {
    Case<S> k(f);
    k.run(1);
    check(k);
    const Words first = k.y;
    k.run(2);
    if (k.y != first) differ(f, "y in another order of threads", 0, 0, 0, 0);
    int kept = 0, opened = 0;
    for (uint8_t bit : k.keep) kept += bit;
    for (uint8_t bit : k.open) opened += f.channel ? bit : 0;
    std::printf("%s %s: %d of %d blocks kept, %d of %d groups open, %ld bank conflicts\n", shape,
                f.name, kept, f.samples * f.blocks, opened,
                f.channel ? f.samples * f.blocks * k.groups : 0, emulate::conflicts);
    if (emulate::conflicts != 0) std::exit(1);
  }
}

template <int C, int P>
void check_addresses() {
  std::set<int> seen;
  for (int row = 0; row < P; ++row)
    for (int chunk = 0; chunk < C / 8; ++chunk) {
      const int at = ddi::element<C>(row, chunk);
      if (at % 8 != 0 || at < row * C || at >= (row + 1) * C || !seen.insert(at).second) {
        std::printf("element<%d>(%d, %d) is %d\n", C, row, chunk, at);
        std::exit(1);
      }
    }
}

}  // namespace

// The addresses that the kernel reads weights at, for whoever packs them.
template <int C>
void print_elements() {
  for (int row = 0; row < C; ++row)
    for (int chunk = 0; chunk < C / 8; ++chunk)
      std::printf("%d %d %d %d\n", C, row, chunk, ddi::element<C>(row, chunk));
}

int main(int count, char**) {
  if (count > 1) {  // any argument
    print_elements<16>();
    print_elements<32>();
    print_elements<64>();
    return 0;
  }
  check_addresses<16, 34 * 34>();
  check_addresses<32, 18 * 18>();
  check_addresses<64, 10 * 10>();
  const Form gated{"gated", 3, 3, 10, 16, 4, true, true};
  check_stage<ddi::Stage64>("64 x 8 x 8", {gated,
                                           {"layers", 2, 2, 10, 1, 64, true, false},
                                           {"channels", 2, 2, 0, 5, 16, false, true},
                                           {"open", 1, 2, 0, 1, 64, false, false},
                                           {"fine", 2, 2, 32, 32, 1, true, true}});
  check_stage<ddi::Stage32>("32 x 16 x 16", {gated, {"odd groups", 2, 2, 7, 3, 12, true, true}});
  check_stage<ddi::Stage16>("16 x 32 x 32", {gated});
  return 0;
}
