// Micro-kernels in plain C++ for all types: what every machine runs, and the model for the others.
// Inner loops run over the kLanes columns of a panel with a constant count, which the compiler
// vectorises for the baseline (SSE2, NEON) by itself.
#include <type_traits>

#include "micro/cells.h"
#include "micro/micro.h"
#include "micro/micro_depthwise.h"

namespace ddi {
namespace {

// Written so that NaN stays NaN.
template <class V>
V activate(V v, bool relu) {
  return relu && v < V(0) ? V(0) : v;
}

template <class T>
using SumOf = std::conditional_t<Types<T>::kInteger, uint32_t, typename Types<T>::Acc>;

// sum + the products of two cells.
template <class T>
SumOf<T> multiply_add(SumOf<T> sum, typename Types<T>::Cell x, typename Types<T>::Cell w) {
  if constexpr (std::is_same<T, bf16>::value) {
    sum += float_of(x << 16) * float_of(w << 16);
    return sum + float_of(x & 0xffff0000u) * float_of(w & 0xffff0000u);
  } else if constexpr (Types<T>::kInteger) {
    for (int j = 0; j < 32; j += 8) {
      sum += static_cast<uint32_t>(static_cast<int>(x >> j & 0xffu) *
                                   static_cast<int8_t>(w >> j & 0xffu));
    }
    return sum;
  } else {
    return sum + x * w;
  }
}

// What a sum stands for.
template <class T>
typename Types<T>::Acc value_of(const ConvTile<T>& t, SumOf<T> sum, int lane) {
  if constexpr (Types<T>::kInteger) {
    const uint32_t shifted = sum + static_cast<uint32_t>(t.start[lane]);
    return static_cast<float>(static_cast<int32_t>(shifted)) * t.factor[lane];
  } else {
    return sum;
  }
}

template <class T, int P>
void conv_tile_of(const ConvTile<T>& t) {
  using Cell = typename Types<T>::Cell;
  using Acc = typename Types<T>::Acc;
  SumOf<T> sum[P][kLanes] = {};
  const int32_t* row = t.row;
  for (int64_t s = 0; s < t.segments; ++s) {
    const Segment& segment = t.segment[s];
    const Cell *a = t.in[0] + segment.offset, *b = t.in[1] + segment.offset;
    for (int64_t c = 0; c < segment.length; ++c, ++a, ++b) {
      const Cell* w = t.weight[0] + (row == nullptr ? segment.row + c : *row++) * kLanes;
      for (int p = 0; p < P; ++p) {
        const Cell x = p == 0 ? *a : *b;
        for (int l = 0; l < kLanes; ++l) sum[p][l] = multiply_add<T>(sum[p][l], x, w[l]);
      }
    }
  }
  for (int p = 0; p < P; ++p) {
    Acc* out = t.out[p] + t.out_at[0];
    const Acc* residual = t.residual[p] == nullptr ? nullptr : t.residual[p] + t.out_at[0];
    for (int l = 0; l < t.last_lanes; ++l) {
      Acc v = value_of<T>(t, sum[p][l], l);
      if (t.bias != nullptr) v += t.bias[l];
      if (t.scale != nullptr) v *= t.scale[l];
      if (residual != nullptr) v += residual[l];
      out[l] = activate(v, t.relu);
    }
  }
}

// As many pixels as leave the accumulators in the baseline's sixteen registers of 16 bytes.
template <class T>
constexpr int kTilePixels = 8 / sizeof(SumOf<T>);

template <class T>
void conv_tile(const ConvTile<T>& t, int pixels, int /*panels: always 1*/, int /*strips: 1*/) {
  if (pixels == 1) {
    conv_tile_of<T, 1>(t);
  } else {
    conv_tile_of<T, kTilePixels<T>>(t);
  }
}

// Channel row[j] of one column of a packed panel, for every channel j of a cell.
template <class T>
typename Types<T>::Cell gather_cell(const typename Types<T>::Cell* column, const int32_t* row) {
  constexpr int kPack = Types<T>::kPack;
  if constexpr (kPack == 1) {
    return column[static_cast<int64_t>(*row) * kLanes];
  } else {
    constexpr int kBits = 32 / kPack;
    uint32_t cell = 0;
    for (int j = 0; j < kPack; ++j) {
      if (row[j] < 0) continue;
      const uint32_t source = column[static_cast<int64_t>(row[j] / kPack) * kLanes];
      cell |= (source >> (kBits * (row[j] % kPack)) & ((1u << kBits) - 1u)) << (kBits * j);
    }
    return cell;
  }
}

template <class T>
void compress_panel(const PanelMove<T>* moves, int n_moves, const int32_t* row, int64_t steps,
                    typename Types<T>::Cell* dst) {
  using Cell = typename Types<T>::Cell;
  const Cell* column[kLanes] = {};
  for (int m = 0; m < n_moves; ++m) {
    for (int l = 0; l < kLanes; ++l) {
      if ((moves[m].mask >> l) & 1u) column[l] = moves[m].src + moves[m].from[l];
    }
  }
  for (int64_t k = 0; k < steps; ++k, dst += kLanes, row += Types<T>::kPack) {
    for (int l = 0; l < kLanes; ++l) {
      dst[l] = column[l] == nullptr ? Cell(0) : gather_cell<T>(column[l], row);
    }
  }
}

template <class T>
void compress_pixels(const T* src, int64_t pixel_stride, int64_t pixels, const ChannelSet& set,
                     typename Types<T>::Cell* dst) {
  for (int64_t p = 0; p < pixels; ++p, src += pixel_stride) {
    for (int64_t i = 0; i < set.open; i += Types<T>::kPack) {
      *dst++ = pack_cell<T>(set.open - i, [&](int64_t j) { return src[set.index[i + j]]; });
    }
  }
}

template <class T>
void gather_planes(const T* src, int64_t channel_stride, int64_t pixels, const ChannelSet& set,
                   typename Types<T>::Cell* dst) {
  constexpr int kPack = Types<T>::kPack;
  const int64_t cells = (set.open + kPack - 1) / kPack;
  for (int64_t k = 0; k < cells; ++k) {
    const int32_t* index = set.index + k * kPack;
    for (int64_t p = 0; p < pixels; ++p) {
      dst[p * cells + k] = pack_cell<T>(
          set.open - k * kPack, [&](int64_t j) { return src[index[j] * channel_stride + p]; });
    }
  }
}

template <class T>
void affine_relu(int64_t pixels, int64_t channels, const T* scale, const T* shift, T* data) {
  for (int64_t p = 0; p < pixels; ++p, data += channels) {
    for (int64_t c = 0; c < channels; ++c) data[c] = activate(data[c] * scale[c] + shift[c], true);
  }
}

template <class V>
void interleave(const V* src, int64_t src_stride, int strips, int64_t count, V* dst) {
  for (int64_t i = 0; i < count; ++i) {
    for (int s = 0; s < strips; ++s) *dst++ = src[s * src_stride + i];
  }
}

// Never asked for: these tables have no strips.
template <class V>
void deinterleave(const V*, int, int64_t, int64_t, V*) {}

template <class Acc, class Out>
void expand_pixels(const Acc* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                   const Out* residual, bool relu, int64_t dst_stride, Out* dst) {
  for (int64_t p = 0; p < pixels; ++p, src += src_stride, dst += dst_stride) {
    int64_t i = 0;
    for (int64_t c = 0; c < set.channels; ++c) {
      const bool open = i < set.open && set.index[i] == c;
      Acc v = open ? src[i++] : Acc(0);
      if (residual != nullptr) v += to_float(residual[c]);
      round_to(activate(v, relu), dst + c);
    }
    if (residual != nullptr) residual += dst_stride;
  }
}

template <class T>
void scatter_pixels(const T* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                    int64_t dst_stride, T* dst) {
  for (int64_t p = 0; p < pixels; ++p, src += src_stride, dst += dst_stride) {
    for (int64_t i = 0; i < set.open; ++i) dst[set.index[i]] = src[i];
  }
}

template <class Acc, class Out>
void fill_closed(int64_t pixels, const ChannelSet& set, const Out* residual, bool relu,
                 int64_t dst_stride, Out* dst) {
  for (int64_t p = 0; p < pixels; ++p, dst += dst_stride) {
    for (int64_t c = 0; c < set.channels; ++c) {
      if (set.bits[c / kLanes] != 0) continue;
      round_to(residual == nullptr ? Acc(0) : activate<Acc>(to_float(residual[c]), relu), dst + c);
    }
    if (residual != nullptr) residual += dst_stride;
  }
}

template <class Acc, class Out>
void scatter_planes(const Acc* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                    int64_t channel_stride, const Out* residual, bool relu, Out* dst) {
  for (int64_t i = 0; i < set.open; ++i) {
    const int64_t plane = set.index[i] * channel_stride;
    for (int64_t p = 0; p < pixels; ++p) {
      const Acc sum = src[p * src_stride + i];
      const Acc v = residual == nullptr ? sum : sum + to_float(residual[plane + p]);
      round_to(activate(v, relu), dst + plane + p);
    }
  }
}

template <class Acc, class Out>
void sum_pixels(const Out* src, int64_t pixel_stride, int64_t pixels, int64_t channels, Acc* sum) {
  for (int64_t c = 0; c < channels; ++c) sum[c] = Acc(0);
  for (int64_t p = 0; p < pixels; ++p, src += pixel_stride) {
    for (int64_t c = 0; c < channels; ++c) sum[c] += to_float(src[c]);
  }
}

void sum_weights(const uint32_t* panel, const Segment* segment, int64_t segments, int32_t* start) {
  uint32_t sum[kLanes] = {};
  for (int64_t s = 0; s < segments; ++s) {
    const uint32_t* w = panel + segment[s].row * kLanes;
    for (int64_t c = 0; c < segment[s].length; ++c, w += kLanes) {
      for (int l = 0; l < kLanes; ++l) {
        sum[l] = multiply_add<int8_t>(sum[l], Types<int8_t>::kZero, w[l]);
      }
    }
  }
  for (int l = 0; l < kLanes; ++l) start[l] = static_cast<int32_t>(0u - sum[l]);
}

void quantize(const float* src, int64_t count, float scale, int8_t* dst) {
  for (int64_t i = 0; i < count; ++i) {
    float v = src[i] / scale;
    v = v > 127.0f ? 127.0f : v;
    v = v < -128.0f ? -128.0f : v;
    v = v != v ? 0.0f : v;
    // Of a float this large the last digit is worth one: the sum is rounded as wanted.
    constexpr float kRound = 12582912.0f;
    dst[i] = static_cast<int8_t>(static_cast<int32_t>(v + kRound - kRound));
  }
}

template <class T>
void run_depthwise(const DepthwiseTile<T>& t, int64_t outputs) {
  for (int64_t p = 0; p < outputs; ++p) {
    T acc[kLanes] = {};
    for (int64_t i = 0; i < t.taps; ++i) {
      const T *x = t.in + p * t.in_stride + t.tap[i].in, *w = t.weight + t.tap[i].weight;
      for (int l = 0; l < t.lanes; ++l) acc[l] += x[l] * w[l];
    }
    for (int l = 0; l < t.lanes; ++l) {
      const int64_t at = p * t.out_stride + l;
      T v = ((t.in_open >> l) & 1u ? acc[l] : T(0)) + t.bias[l];
      if (t.scale != nullptr) v *= t.scale[l];
      if (((t.out_open >> l) & 1u) == 0) v = T(0);
      if (t.residual != nullptr) v += t.residual[at];
      t.out[at] = activate(v, t.relu);
    }
  }
}

template <class T>
constexpr Micro<T> scalar_table() {
  using Acc = typename Types<T>::Acc;
  using Out = typename Types<T>::Out;
  return {{0, kTilePixels<T>, 0, 0},
          1,
          conv_tile<T>,
          compress_panel<T>,
          compress_pixels<T>,
          gather_planes<T>,
          nullptr,
          interleave<typename Types<T>::Cell>,
          deinterleave<Acc>,
          expand_pixels<Acc, Out>,
          nullptr,
          fill_closed<Acc, Out>,
          scatter_planes<Acc, Out>,
          sum_pixels<Acc, Out>,
          Types<T>::kInteger ? sum_weights : nullptr,
          Types<T>::kInteger ? quantize : nullptr};
}

// With what only float and double have.
template <class T>
constexpr Micro<T> real_table() {
  Micro<T> table = scalar_table<T>();
  table.affine_relu = affine_relu<T>;
  table.scatter_pixels = scatter_pixels<T>;
  return table;
}

}  // namespace

const Micro<float> kScalarF32 = real_table<float>();
const Micro<double> kScalarF64 = real_table<double>();
const Micro<half> kScalarF16 = scalar_table<half>();
const Micro<bf16> kScalarBf16 = scalar_table<bf16>();
const Micro<int8_t> kScalarInt8 = scalar_table<int8_t>();
const DepthwiseTileFn<float> kScalarDepthwiseF32 = run_depthwise<float>;
const DepthwiseTileFn<double> kScalarDepthwiseF64 = run_depthwise<double>;

}  // namespace ddi
