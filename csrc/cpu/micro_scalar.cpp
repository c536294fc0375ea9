// Micro-kernels in plain C++ for float and double: what every machine runs, and the model for the
// others. Inner loops run over the kLanes columns of a panel with a constant count, which the
// compiler vectorises for the baseline (SSE2, NEON) by itself.
#include "micro.h"
#include "micro_depthwise.h"

namespace ddi {
namespace {

// Written so that NaN stays NaN.
template <class T>
T activate(T v, bool relu) {
  return relu && v < T(0) ? T(0) : v;
}

template <class T, int P>
void conv_tile_of(const ConvTile<T>& t) {
  T acc[P][kLanes] = {};
  const int32_t* row = t.row;
  for (int64_t s = 0; s < t.segments; ++s) {
    const Segment& segment = t.segment[s];
    const T *a = t.in[0] + segment.offset, *b = t.in[1] + segment.offset;
    for (int64_t c = 0; c < segment.length; ++c, ++a, ++b) {
      const T* w = t.weight[0] + (row == nullptr ? segment.row + c : *row++) * kLanes;
      for (int p = 0; p < P; ++p) {
        const T v = p == 0 ? *a : *b;
        for (int l = 0; l < kLanes; ++l) acc[p][l] += v * w[l];
      }
    }
  }
  for (int p = 0; p < P; ++p) {
    T* out = t.out[p] + t.out_at[0];
    const T* residual = t.residual[p] == nullptr ? nullptr : t.residual[p] + t.out_at[0];
    for (int l = 0; l < t.last_lanes; ++l) {
      T v = acc[p][l] + t.bias[l];
      if (t.scale != nullptr) v *= t.scale[l];
      if (residual != nullptr) v += residual[l];
      out[l] = activate(v, t.relu);
    }
  }
}

// As many pixels as leave the accumulators in the baseline's sixteen registers of 16 bytes.
template <class T>
constexpr int kTilePixels = 8 / sizeof(T);

template <class T>
void conv_tile(const ConvTile<T>& t, int pixels, int /*panels: always 1*/, int /*strips: 1*/) {
  if (pixels == 1) {
    conv_tile_of<T, 1>(t);
  } else {
    conv_tile_of<T, kTilePixels<T>>(t);
  }
}

template <class T>
void compress_panel(const PanelMove<T>* moves, int n_moves, const int32_t* row, int64_t steps,
                    T* dst) {
  const T* column[kLanes] = {};
  for (int m = 0; m < n_moves; ++m) {
    for (int l = 0; l < kLanes; ++l) {
      if ((moves[m].mask >> l) & 1u) column[l] = moves[m].src + moves[m].from[l];
    }
  }
  for (int64_t k = 0; k < steps; ++k, dst += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      dst[l] = column[l] == nullptr ? T(0) : column[l][static_cast<int64_t>(row[k]) * kLanes];
    }
  }
}

template <class T>
void compress_pixels(const T* src, int64_t pixel_stride, int64_t pixels, const ChannelSet& set,
                     T* dst) {
  for (int64_t p = 0; p < pixels; ++p, src += pixel_stride, dst += set.open) {
    for (int64_t i = 0; i < set.open; ++i) dst[i] = src[set.index[i]];
  }
}

template <class T>
void gather_planes(const T* src, int64_t channel_stride, int64_t pixels, const ChannelSet& set,
                   T* dst) {
  for (int64_t i = 0; i < set.open; ++i) {
    const T* plane = src + set.index[i] * channel_stride;
    for (int64_t p = 0; p < pixels; ++p) dst[p * set.open + i] = plane[p];
  }
}

template <class T>
void affine_relu(int64_t pixels, int64_t channels, const T* scale, const T* shift, T* data) {
  for (int64_t p = 0; p < pixels; ++p, data += channels) {
    for (int64_t c = 0; c < channels; ++c) data[c] = activate(data[c] * scale[c] + shift[c], true);
  }
}

// Never asked for: this table has no strips.
template <class T>
void interleave(const T*, int64_t, int, int64_t, T*) {}

template <class T>
void deinterleave(const T*, int, int64_t, int64_t, T*) {}

template <class T>
void expand_pixels(const T* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                   const T* residual, bool relu, int64_t dst_stride, T* dst) {
  for (int64_t p = 0; p < pixels; ++p, src += src_stride, dst += dst_stride) {
    for (int64_t c = 0; c < set.channels; ++c) {
      dst[c] = residual == nullptr ? T(0) : activate(residual[c], relu);
    }
    for (int64_t i = 0; i < set.open; ++i) {
      const int32_t c = set.index[i];
      dst[c] = activate(residual == nullptr ? src[i] : src[i] + residual[c], relu);
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

template <class T>
void fill_closed(int64_t pixels, const ChannelSet& set, const T* residual, bool relu,
                 int64_t dst_stride, T* dst) {
  for (int64_t p = 0; p < pixels; ++p, dst += dst_stride) {
    for (int64_t c = 0; c < set.channels; ++c) {
      if (set.bits[c / kLanes] != 0) continue;
      dst[c] = residual == nullptr ? T(0) : activate(residual[c], relu);
    }
    if (residual != nullptr) residual += dst_stride;
  }
}

template <class T>
void scatter_planes(const T* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                    int64_t channel_stride, const T* residual, bool relu, T* dst) {
  for (int64_t i = 0; i < set.open; ++i) {
    const int64_t plane = set.index[i] * channel_stride;
    for (int64_t p = 0; p < pixels; ++p) {
      const T v = src[p * src_stride + i];
      dst[plane + p] = activate(residual == nullptr ? v : v + residual[plane + p], relu);
    }
  }
}

template <class T>
void sum_pixels(const T* src, int64_t pixel_stride, int64_t pixels, int64_t channels, T* sum) {
  for (int64_t c = 0; c < channels; ++c) sum[c] = T(0);
  for (int64_t p = 0; p < pixels; ++p, src += pixel_stride) {
    for (int64_t c = 0; c < channels; ++c) sum[c] += src[c];
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
  return {{0, kTilePixels<T>, 0, 0},
          1,
          conv_tile<T>,
          compress_panel<T>,
          compress_pixels<T>,
          gather_planes<T>,
          affine_relu<T>,
          interleave<T>,
          deinterleave<T>,
          expand_pixels<T>,
          scatter_pixels<T>,
          fill_closed<T>,
          scatter_planes<T>,
          sum_pixels<T>};
}

}  // namespace

const Micro<float> kScalarF32 = scalar_table<float>();
const Micro<double> kScalarF64 = scalar_table<double>();
const DepthwiseTileFn<float> kDepthwiseScalarF32 = run_depthwise<float>;
const DepthwiseTileFn<double> kDepthwiseScalarF64 = run_depthwise<double>;

}  // namespace ddi
