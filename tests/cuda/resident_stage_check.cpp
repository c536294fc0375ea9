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
  bool layer, channel, entry = false;
};

template <class S>
struct Case {
  Form form;
  int groups;
  Floats filters[2], biases, gates[12], h, c;
  Floats entry_filters[3], entry_biases, entry_gates[6];  // of both convolutions and the shortcut
  Words x, packed, packed_entry[2], y;
  Floats h_next, c_next;
  std::vector<uint8_t> keep, open;
  int queue = 0;

  explicit Case(const Form& f) : form(f), groups((S::C + f.groups_of - 1) / f.groups_of) {
    const int B = f.blocks, C = S::C, H = f.hidden, R = f.reduced;
    packed.resize(static_cast<size_t>(B) * 2 * S::kFilter);
    for (int i = 0; i < 2; ++i) {
      filters[i] = random_filters(B * 9, C);
      for (int b = 0; b < B; ++b)
        pack<C>(&filters[i][b * S::kFilter], 9, &packed[(b * 2 + i) * S::kFilter]);
    }
    for (int i = 0; i < 3; ++i)
      entry_filters[i] = random_filters(i == 2 ? 1 : 9, i == 1 ? C : C / 2);
    packed_entry[0].resize(10 * C * C / 2);
    packed_entry[1].resize(S::kFilter);
    pack<C / 2>(entry_filters[0].data(), 9, packed_entry[0].data());
    pack<C / 2>(entry_filters[2].data(), 1, packed_entry[0].data() + 9 * C * C / 2);
    pack<C>(entry_filters[1].data(), 9, packed_entry[1].data());
    entry_biases = normals(2 * C, 0.2f);
    const size_t entry_sizes[6] = {size_t(H * C / 2), size_t(H),          size_t(R * (C / 2 + H)),
                                   size_t(R),         size_t(groups * R), size_t(groups)};
    for (int i = 0; i < 6; ++i) entry_gates[i] = normals(entry_sizes[i], 0.7f);
    biases = normals(static_cast<size_t>(B) * 2 * C, 0.2f);
    const size_t sizes[12] = {
        size_t(H * C),           size_t(H),     size_t(4 * H * H),      size_t(4 * H * H),
        size_t(4 * H),           size_t(4 * H), size_t(B * H),          size_t(B),
        size_t(B * R * (C + H)), size_t(B * R), size_t(B * groups * R), size_t(B * groups)};
    for (int i = 0; i < 12; ++i) gates[i] = normals(sizes[i], i == 6 ? 3.f : 0.7f);
    const size_t image = static_cast<size_t>(f.samples) * S::W * S::W * C;
    x = rounded(normals(f.entry ? image * 2 : image, 1.f));
    y.assign(image, 0xffff);
    h = normals(static_cast<size_t>(f.samples) * H, 0.5f);
    c = normals(h.size(), 0.5f);
    h_next.assign(h.size(), NAN);
    c_next = h_next;
    keep.assign(static_cast<size_t>(f.samples) * (B + f.entry), 7);
    open.assign(keep.size() * groups, 7);
  }

  // [taps, C, in] of random weights, bfloat16 but for their type.
  static Floats random_filters(int taps, int in) {
    Floats values = normals(static_cast<size_t>(taps) * S::C * in, 1.f / std::sqrt(9.f * in));
    for (float& w : values) w = from_bf16(to_bf16(w));
    return values;
  }

  template <int IN>
  static void pack(const float* from, int taps, uint16_t* to) {
    for (int row = 0; row < taps * S::C; ++row)
      for (int ci = 0; ci < IN; ++ci)
        to[row / S::C * S::C * IN + ddi::element<IN>(row % S::C, ci / 8) + ci % 8] =
            static_cast<uint16_t>(to_bf16(from[row * IN + ci]));
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
    ddi::StageGates first = g;
    first.project = entry_gates[0].data(), first.project_bias = entry_gates[1].data();
    first.layer = first.layer_bias = nullptr;
    first.reduce = at(entry_gates[2], form.channel), first.reduce_bias = entry_gates[3].data();
    first.expand = entry_gates[4].data(), first.expand_bias = entry_gates[5].data();
    queue = 0;
    ddi::StageData d{};
    d.x = x.data(), d.y = y.data(), d.weights = packed.data(), d.biases = biases.data();
    d.entry1 = packed_entry[0].data(), d.entry2 = packed_entry[1].data();
    d.entry_biases = entry_biases.data();
    d.h = h.data(), d.c = c.data(), d.h_next = h_next.data(), d.c_next = c_next.data();
    d.keep = keep.data(), d.open = open.data(), d.queue = &queue;
    d.samples = form.samples, d.blocks = form.blocks;
    const auto launch = [&](auto kernel, int bytes) {
      emulate::launch(2, ddi::kStageThreads, static_cast<size_t>(bytes), seed,
                      [&] { kernel(d, first, g); });
    };
    if (form.entry) {
      // Stages of 16 channels come first: there is no entry to them.
      if constexpr (S::C > 16)
        launch(ddi::resident_stage_kernel<S, true>, ddi::stage_shared_bytes<S, true>());
    } else {
      launch(ddi::resident_stage_kernel<S, false>, ddi::stage_shared_bytes<S, false>());
    }
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

// The gates of a block in double, its bits at `at`; bits near the threshold are taken from the
// kernel. Weights of block b; of the entry block in its place, `b` negative.
template <class S>
void decide(Case<S>& k, int n, int b, size_t at, const Floats& means, Floats& h, Floats& c) {
  const Form& f = k.form;
  const int H = f.hidden, R = f.reduced, C = static_cast<int>(means.size());
  const bool entry = b < 0;
  b = std::max(b, 0);
  const Floats* own[6] = {&k.gates[0], &k.gates[1],  &k.gates[8],
                          &k.gates[9], &k.gates[10], &k.gates[11]};
  for (int i = 0; entry && i < 6; ++i) own[i] = &k.entry_gates[i];
  const auto bit = [&](const char* what, uint8_t found, double logit) {
    if (std::fabs(logit) > 1e-3 && found != (logit > 0)) differ(f, what, n, b, found, logit);
  };
  Floats x(H), z(4 * H), next(H);
  for (int t = 0; t < H; ++t)
    x[t] = static_cast<float>(dot(&(*own[0])[t * C], means) + (*own[1])[t]);
  for (int t = 0; t < 4 * H; ++t)
    z[t] = static_cast<float>(dot(&k.gates[2][t * H], x) + dot(&k.gates[3][t * H], h) +
                              k.gates[4][t] + k.gates[5][t]);
  for (int t = 0; t < H; ++t) {
    const double cell = sigmoid(z[H + t]) * c[t] + sigmoid(z[t]) * std::tanh(z[2 * H + t]);
    c[t] = static_cast<float>(cell);
    next[t] = static_cast<float>(sigmoid(z[3 * H + t]) * std::tanh(cell));
  }
  h = next;
  bit("keep", k.keep[at], f.layer && !entry ? dot(&k.gates[6][b * H], h) + k.gates[7][b] : 1);
  if (!f.channel) return;
  Floats seen = means, r(R);
  seen.insert(seen.end(), h.begin(), h.end());
  for (int t = 0; t < R; ++t)
    r[t] = std::max(0.f, static_cast<float>(dot(&(*own[2])[(b * R + t) * (C + H)], seen) +
                                            (*own[3])[b * R + t]));
  for (int t = 0; t < k.groups; ++t)
    bit("open", k.open[at * k.groups + t],
        dot(&(*own[4])[(b * k.groups + t) * R], r) + (*own[5])[b * k.groups + t]);
}

// A convolution to C channels of W x W pixels, kernel x kernel taps; the input is `stride` times as
// large.
template <class S>
Floats convolve(const Floats& in, const float* w, int kernel = 3, int stride = 1) {
  constexpr int W = S::W;
  const int IN = static_cast<int>(in.size()) / (W * W * stride * stride), side = W * stride;
  Floats out(W * W * S::C);
  for (int at = 0; at < W * W * S::C; ++at) {
    const int x = at / S::C % W, y = at / S::C / W;
    double sum = 0;
    for (int tap = 0; tap < kernel * kernel; ++tap) {
      const int v = y * stride + tap / kernel - kernel / 2,
                u = x * stride + tap % kernel - kernel / 2;
      if (v < 0 || v >= side || u < 0 || u >= side) continue;
      const float* row = w + (tap * S::C + at % S::C) * IN;
      for (int ci = 0; ci < IN; ++ci)
        sum += static_cast<double>(in[(v * side + u) * IN + ci]) * row[ci];
    }
    out[at] = static_cast<float>(sum);
  }
  return out;
}

// relu(a + b + bias), rounded to bfloat16; channels that `open` closes are 0.
template <class S>
Floats finish(Floats a, const Floats& b, const float* bias, const std::function<bool(int)>& open) {
  for (size_t i = 0; i < a.size(); ++i) {
    const float sum = a[i] + (b.empty() ? 0 : b[i]) + bias[i % S::C];
    a[i] = open(static_cast<int>(i) % S::C) ? from_bf16(to_bf16(std::max(0.f, sum))) : 0.f;
  }
  return a;
}

Floats means_of(const Floats& image, int channels) {
  Floats means(channels);
  for (size_t i = 0; i < image.size(); ++i)
    means[i % channels] += image[i] * channels / image.size();
  return means;
}

template <class S>
void check(Case<S>& k) {
  const Form& f = k.form;
  constexpr int C = S::C, kImage = S::W * S::W * S::C;
  const auto all = [](int) { return true; };
  for (int n = 0; n < f.samples; ++n) {
    const int size = f.entry ? 2 * kImage : kImage;
    Floats image(size), h(k.h.begin() + n * f.hidden, k.h.begin() + (n + 1) * f.hidden);
    Floats c(k.c.begin() + n * f.hidden, k.c.begin() + (n + 1) * f.hidden);
    for (int i = 0; i < size; ++i) image[i] = from_bf16(k.x[n * size + i]);
    size_t at = static_cast<size_t>(n) * (f.blocks + f.entry);
    const auto open = [&](int channel) {
      return !f.channel || k.open[at * k.groups + channel / f.groups_of] != 0;
    };
    if (f.entry) {
      decide(k, n, -1, at, means_of(image, C / 2), h, c);
      const float* bias = k.entry_biases.data();
      const Floats inside =
          finish<S>(convolve<S>(image, k.entry_filters[0].data(), 3, 2), {}, bias, open);
      image = finish<S>(convolve<S>(inside, k.entry_filters[1].data()),
                        convolve<S>(image, k.entry_filters[2].data(), 1, 2), bias + C, all);
      ++at;
    }
    for (int b = 0; b < f.blocks; ++b, ++at) {
      decide(k, n, b, at, means_of(image, C), h, c);
      if (!k.keep[at]) continue;
      const float* bias = &k.biases[b * 2 * C];
      const Floats inside =
          finish<S>(convolve<S>(image, &k.filters[0][b * S::kFilter]), {}, bias, open);
      image = finish<S>(convolve<S>(inside, &k.filters[1][b * S::kFilter]), image, bias + C, all);
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
                f.name, kept, static_cast<int>(k.keep.size()), opened,
                f.channel ? static_cast<int>(k.open.size()) : 0, emulate::conflicts);
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
  const Form entered{"entered", 3, 2, 10, 16, 4, true, true, true};
  check_stage<ddi::Stage64>("64 x 8 x 8", {gated,
                                           entered,
                                           {"layers", 3, 3, 10, 1, 64, true, false},
                                           {"channels", 2, 2, 0, 5, 16, false, true},
                                           {"open", 1, 2, 0, 1, 64, false, false},
                                           {"fine", 2, 2, 32, 32, 1, true, true},
                                           {"entered alone", 3, 0, 7, 5, 8, false, true, true}});
  check_stage<ddi::Stage32>("32 x 16 x 16",
                            {gated,
                             entered,
                             {"odd groups", 2, 2, 7, 3, 12, true, true},
                             {"entered, open", 3, 1, 0, 1, 32, false, false, true}});
  check_stage<ddi::Stage16>("16 x 32 x 32", {gated});
  return 0;
}
