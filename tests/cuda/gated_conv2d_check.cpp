// The kernels of gated_conv2d and active_channels, emulated, against plain loops: every dtype, tile
// and way of copying, odd sizes, all open, all closed, NaN in closed channels, threads in several
// orders. Prints what was compared; exits with 1 at the first difference.
#define DDI_EMULATE
#include "active_channels.cuh"
#include "gated_conv2d.cuh"

namespace {

using Floats = std::vector<double>;

std::mt19937 random_bits(1);

double normal() { return std::normal_distribution<double>(0, 1)(random_bits); }

[[noreturn]] void differ(const char* name, const char* what, size_t at, double found,
                         double wanted) {
  std::printf("%s: %s[%zu] is %g, expected %g\n", name, what, at, found, wanted);
  std::exit(1);
}

struct Form {
  const char* name;
  int H, W, CI, CO, K, stride, pad, dilation;
  int in_group, out_group;  // channels of a gate's bit, 0: no mask
  bool bias, scale, residual, relu;
};

// Bits of samples: all open, all closed, one group open, and about half.
constexpr int kSamples = 4;

std::vector<uint8_t> bits_of(int groups) {
  std::vector<uint8_t> bits(static_cast<size_t>(kSamples) * groups);
  for (int g = 0; g < groups; ++g) {
    bits[g] = 1;
    bits[2 * groups + g] = g == groups / 2;
    bits[3 * groups + g] = random_bits() % 2;
  }
  return bits;
}

struct Lists {
  std::vector<int> channels, count;
};

// Lists by the kernel, compared with loops.
template <ddi::Rest kRest>
Lists list_channels(const char* name, const std::vector<uint8_t>& bits, int channels, int group) {
  const int groups = static_cast<int>(bits.size()) / kSamples;
  Lists found{std::vector<int>(static_cast<size_t>(kSamples) * channels, -7),
              std::vector<int>(kSamples, -7)};
  emulate::launch(kSamples, ddi::kListThreads, 16, 1, [&] {
    ddi::active_channels_kernel<kRest>(bits.data(), channels, group, groups, found.channels.data(),
                                       found.count.data());
  });
  for (int n = 0; n < kSamples; ++n) {
    std::vector<int> wanted, closed;
    for (int c = 0; c < channels; ++c)
      (bits[n * groups + c / group] ? wanted : closed).push_back(c);
    const size_t count = wanted.size();
    if (found.count[n] != static_cast<int>(count)) differ(name, "count", n, found.count[n], count);
    wanted.insert(wanted.end(), closed.begin(), closed.end());
    for (int c = 0; c < channels; ++c) {
      if (kRest == ddi::Rest::kPad && c >= static_cast<int>(count)) wanted[c] = channels;
      const int at = n * channels + c;
      if (found.channels[at] != wanted[c]) differ(name, "list", at, found.channels[at], wanted[c]);
    }
  }
  return found;
}

template <class T>
struct Values {
  using Word = typename T::Word;
  std::vector<Word> words;  // one word more than is needed, to be misaligned
  Floats values;
  size_t skip;

  Values(size_t n, size_t skipped) : words(n + 8 + skipped), values(n), skip(skipped) {}
  void set(size_t i, double value) {
    *(data() + i) = T::narrow(static_cast<float>(value));
    values[i] = T::widen(*(data() + i));
  }
  Word* data() {
    const uintptr_t at = (reinterpret_cast<uintptr_t>(words.data()) + 15) & ~uintptr_t{15};
    return reinterpret_cast<Word*>(at) + skip;
  }
};

template <class T>
Values<T> normals(size_t n, double scale, size_t skip = 0) {
  Values<T> v(n, skip);
  for (size_t i = 0; i < n; ++i) v.set(i, normal() * scale);
  return v;
}

template <class T, int BM, bool PIECES>
void check(const Form& f, double tolerance) {
  const int OH = (f.H + 2 * f.pad - f.dilation * (f.K - 1) - 1) / f.stride + 1;
  const int OW = (f.W + 2 * f.pad - f.dilation * (f.K - 1) - 1) / f.stride + 1;
  const ddi::ConvShape s{kSamples, f.H,      f.W,      OH,    OW,    f.CI,       f.CO,      f.K,
                         f.K,      f.stride, f.stride, f.pad, f.pad, f.dilation, f.dilation};
  const int in_group = f.in_group ? f.in_group : f.CI, out_group = f.out_group ? f.out_group : f.CO;
  const int in_groups = (f.CI + in_group - 1) / in_group;
  const int out_groups = (f.CO + out_group - 1) / out_group;
  std::vector<uint8_t> in_bits = bits_of(in_groups), out_bits = bits_of(out_groups);
  if (!f.in_group) in_bits.assign(in_bits.size(), 1);
  if (!f.out_group) out_bits.assign(out_bits.size(), 1);
  const Lists in = list_channels<ddi::Rest::kClosed>(f.name, in_bits, f.CI, in_group);
  const Lists out = list_channels<ddi::Rest::kClosed>(f.name, out_bits, f.CO, out_group);

  const size_t skip = PIECES ? 0 : 1, outputs = static_cast<size_t>(kSamples) * OH * OW * f.CO;
  Values<T> x = normals<T>(static_cast<size_t>(kSamples) * f.H * f.W * f.CI, 1, skip);
  for (size_t i = 0; i < x.values.size(); ++i) {
    const size_t n = i / f.CI / f.W / f.H, c = i % f.CI;
    if (!in_bits[n * in_groups + c / in_group]) x.set(i, NAN);
  }
  // One infinity in an open channel of the last sample, where some columns are closed.
  if (in.count[3] > 0)
    x.set(static_cast<size_t>(3) * f.H * f.W * f.CI + in.channels[static_cast<size_t>(3) * f.CI],
          INFINITY);
  Values<T> w =
      normals<T>(static_cast<size_t>(f.CO) * f.K * f.K * f.CI, 1 / std::sqrt(f.K * f.K * f.CI));
  Values<T> bias = normals<T>(f.CO, 1), residual = normals<T>(outputs, 1, skip);
  Values<T> scale = normals<T>(static_cast<size_t>(kSamples) * out_groups, 1);

  ddi::ConvData<T> d{};
  d.x = x.data(), d.weight = w.data(), d.bias = f.bias ? bias.data() : nullptr;
  d.scale = f.scale ? scale.data() : nullptr, d.residual = f.residual ? residual.data() : nullptr;
  if (f.in_group) d.in = {in.channels.data(), in.count.data()};
  if (f.out_group) d.out = {out.channels.data(), out.count.data()};
  d.tiles = (OH * OW + BM - 1) / BM;
  d.scale_groups = out_groups, d.scale_group_size = out_group;
  d.relu = f.relu;
  d.whole_pieces = PIECES && f.CO % ddi::ConvPiece<T>::kChannels == 0 &&
                   (out_group % ddi::ConvPiece<T>::kChannels == 0 || out_groups == 1);
  const unsigned blocks =
      static_cast<unsigned>(d.tiles * kSamples * ((f.CO + ddi::kConvCols - 1) / ddi::kConvCols));
  std::vector<typename T::Word> first;
  for (unsigned seed : {1, 2}) {
    Values<T> y(outputs, skip);
    for (size_t i = 0; i < outputs; ++i) y.set(i, NAN);
    d.y = y.data();
    emulate::launch(blocks, ddi::kConvThreads, ddi::ConvTile<BM>::kShared, seed,
                    [&] { ddi::gated_conv2d_kernel<T, BM, PIECES>(d, s); });
    const std::vector<typename T::Word> words(y.data(), y.data() + outputs);
    if (!first.empty() && std::memcmp(first.data(), words.data(), outputs * sizeof(words[0])) != 0)
      differ(f.name, "y in another order of threads", 0, 0, 0);
    first = words;
  }
  size_t at = 0, finite = 0;
  for (int n = 0; n < kSamples; ++n)
    for (int p = 0; p < OH * OW; ++p)
      for (int co = 0; co < f.CO; ++co, ++at) {
        double sum = f.bias ? bias.values[co] : 0;
        for (int tap = 0; tap < f.K * f.K; ++tap) {
          const int v = p / OW * f.stride - f.pad + tap / f.K * f.dilation;
          const int u = p % OW * f.stride - f.pad + tap % f.K * f.dilation;
          if (v < 0 || v >= f.H || u < 0 || u >= f.W) continue;
          for (int c = 0; c < f.CI; ++c)
            if (in_bits[n * in_groups + c / in_group])
              sum += x.values[((static_cast<size_t>(n) * f.H + v) * f.W + u) * f.CI + c] *
                     w.values[(static_cast<size_t>(co) * f.K * f.K + tap) * f.CI + c];
        }
        if (f.scale) sum *= scale.values[n * out_groups + co / out_group];
        if (!out_bits[n * out_groups + co / out_group]) sum = 0;
        if (f.residual) sum += residual.values[at];
        if (f.relu && sum < 0) sum = 0;
        const double found = T::widen(first[at]);
        const bool same = std::isfinite(sum)
                              ? std::fabs(found - sum) <= tolerance * (1 + std::fabs(sum))
                          : std::isinf(sum) ? found == sum
                                            : std::isnan(found);
        if (!same) differ(f.name, "y", at, found, sum);
        finite += std::isfinite(sum);
      }
  std::printf("%s: %zu of %zu outputs finite, %ld bank conflicts\n", f.name, finite, at,
              emulate::conflicts);
  if (emulate::conflicts != 0 || finite < at / 2) std::exit(1);
}

void check_pieces() {
  std::set<int> seen;
  for (int row = 0; row < 128; ++row) {
    std::set<int> banks;
    for (int piece = 0; piece < ddi::kRowPieces; ++piece) {
      const int at = ddi::piece_at(row, piece);
      if (at / ddi::kRowBytes != row || at % 16 != 0 || !seen.insert(at).second)
        differ("piece_at", "row", row, at, piece);
      // Eight rows, one after the other or every second one, as matrix and float loads take them.
      for (int step : {1, 2}) {
        banks.clear();
        for (int i = 0; i < 8 / step; ++i)
          banks.insert(ddi::piece_at(row / 8 * 8 + i * step, piece) / 16 % 8);
        if (static_cast<int>(banks.size()) != 8 / step) differ("piece_at", "banks", row, 0, piece);
      }
    }
  }
}

void check_halves() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = emulate::from_f16(bits);
    if (value == value && emulate::to_f16(value) != bits) differ("float16", "bits", bits, value, 0);
  }
  if (emulate::to_f16(2049.f) != emulate::to_f16(2048.f)) differ("float16", "ties", 0, 0, 0);
}

}  // namespace

int main() {
  using ddi::Bfloat16;
  using ddi::Float16;
  using ddi::Float32;
  check_pieces();
  check_halves();
  list_channels<ddi::Rest::kPad>("lists", bits_of(75), 600, 8);
  list_channels<ddi::Rest::kPad>("short lists", bits_of(3), 5, 2);
  list_channels<ddi::Rest::kClosed>("long lists", bits_of(600), 600, 1);
  //                                 H  W   CI  CO  K  s  p  d  gates   bias scale residual relu
  check<Bfloat16, 128, true>(
      {"128 pixels", 13, 12, 72, 136, 3, 1, 1, 1, 8, 8, true, true, true, true}, 1e-2);
  check<Bfloat16, 64, true>(
      {"64 pixels", 7, 9, 64, 64, 3, 2, 1, 1, 16, 32, true, false, false, false}, 1e-2);
  check<Bfloat16, 64, true>({"1x1", 5, 5, 40, 24, 1, 1, 0, 1, 8, 8, false, false, true, true},
                            1e-2);
  check<Bfloat16, 64, true>({"no masks", 6, 5, 24, 80, 3, 1, 2, 2, 0, 0, true, false, true, false},
                            1e-2);
  check<Bfloat16, 64, true>({"odd columns", 4, 5, 16, 27, 3, 1, 1, 1, 8, 5, true, true, true, true},
                            1e-2);
  check<Bfloat16, 64, false>(
      {"odd channels", 6, 5, 19, 21, 3, 1, 1, 1, 3, 2, true, true, true, true}, 1e-2);
  check<Bfloat16, 64, false>(
      {"misaligned", 5, 4, 16, 16, 5, 1, 2, 1, 0, 16, false, true, false, true}, 1e-2);
  check<Float16, 128, true>({"float16", 12, 11, 32, 48, 3, 1, 1, 1, 16, 16, true, true, true, true},
                            2e-3);
  check<Float16, 64, true>(
      {"float16, 64 pixels", 5, 5, 32, 72, 3, 1, 1, 1, 8, 8, true, true, true, true}, 2e-3);
  check<Float16, 64, false>({"float16, odd", 5, 5, 9, 7, 3, 1, 1, 1, 1, 1, true, true, true, true},
                            2e-3);
  check<Float32, 64, true>({"float32", 7, 6, 36, 72, 3, 1, 1, 1, 4, 4, true, true, true, true},
                           1e-5);
  check<Float32, 64, false>(
      {"float32, odd", 5, 5, 11, 67, 3, 2, 1, 1, 2, 3, true, true, true, true}, 1e-5);
  return 0;
}
