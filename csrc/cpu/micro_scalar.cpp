// Micro-kernels in plain C++ for float and double: what every machine runs, and the model for the
// others. Inner loops run over the kLanes columns of a panel with a constant count, which the
// compiler vectorises for the baseline (SSE2, NEON) by itself.
#include "micro.h"

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
  const T* w = t.weight;
  for (int64_t s = 0; s < t.segments; ++s) {
    const T* a = t.in + t.offset[s];
    for (int64_t c = 0; c < t.segment_length; ++c, ++a, w += kLanes) {
      for (int p = 0; p < P; ++p) {
        const T v = a[p * t.pixel_stride];
        for (int l = 0; l < kLanes; ++l) acc[p][l] += v * w[l];
      }
    }
  }
  for (int p = 0; p < P; ++p) {
    T* out = t.out + p * t.out_stride;
    const T* residual = t.residual == nullptr ? nullptr : t.residual + p * t.out_stride;
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
void conv_tile(const ConvTile<T>& t, int pixels, int /*panels: always 1*/) {
  if (pixels == 1) {
    conv_tile_of<T, 1>(t);
  } else {
    conv_tile_of<T, kTilePixels<T>>(t);
  }
}

template <class T>
void compress_panel(const PanelMove<T>* moves, int n_moves, int64_t taps, const ChannelSet& in,
                    T* dst) {
  // The columns of all moves, in the order they are stored.
  const T* column[kLanes];
  int columns = 0;
  for (int m = 0; m < n_moves; ++m) {
    for (int l = 0; l < kLanes; ++l) {
      if ((moves[m].mask >> l) & 1u) column[columns++] = moves[m].src + l;
    }
  }
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t i = 0; i < in.open; ++i, dst += kLanes) {
      const int64_t row = (tap * in.channels + in.index[i]) * kLanes;
      for (int l = 0; l < columns; ++l) dst[l] = column[l][row];
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
void expand_pixels(const T* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                   const T* residual, bool relu, T* dst) {
  for (int64_t p = 0; p < pixels; ++p, src += src_stride, dst += set.channels) {
    for (int64_t c = 0; c < set.channels; ++c) {
      dst[c] = residual == nullptr ? T(0) : activate(residual[c], relu);
    }
    for (int64_t i = 0; i < set.open; ++i) {
      const int32_t c = set.index[i];
      dst[c] = activate(residual == nullptr ? src[i] : src[i] + residual[c], relu);
    }
    if (residual != nullptr) residual += set.channels;
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
constexpr Micro<T> scalar_table() {
  return {{0, kTilePixels<T>, 0, 0, 0},
          conv_tile<T>,
          compress_panel<T>,
          compress_pixels<T>,
          gather_planes<T>,
          expand_pixels<T>,
          scatter_planes<T>};
}

}  // namespace

const Micro<float> kScalarF32 = scalar_table<float>();
const Micro<double> kScalarF64 = scalar_table<double>();

}  // namespace ddi
