// The micro-kernels of what stands between convolutions: activations, pooling, conversions. Lanes
// are neighbouring channels of a pixel, values are computed as floats whatever they are stored as,
// and NaN passes through everywhere.
#pragma once

#include <cstdint>

#include "base/dtypes.h"
#include "base/isa.h"

namespace ddi {

enum class Activation { kNone, kRelu, kRelu6, kHardswish, kSilu, kSigmoid };

constexpr int kActivations = 6;

// y = act(scale x + shift + add) of pixels of contiguous channels; what is nullptr is left out.
template <class T>
struct ActivationRow {
  int64_t pixels, channels;
  const T* x;
  const float *scale, *shift;  // [channels]
  const T* add;
  T* y;                                    // may be x or add
  int64_t x_stride, add_stride, y_stride;  // from pixel to pixel
};

// A run of outputs of one row, whose windows have as many pixels.
template <class T>
struct PoolRow {
  int64_t outputs, channels;
  const T* x;  // first pixel of the first window
  int64_t rows, columns;
  int64_t row_stride, pixel_stride, window_stride;
  float divisor;  // of averages
  T* y;
  int64_t y_stride;
};

template <class T>
struct ElementwiseMicro {
  void (*activate[kActivations])(const ActivationRow<T>& row);
  void (*max_pool)(const PoolRow<T>& row);
  void (*average_pool)(const PoolRow<T>& row);
  void (*from_float)(const float* src, int64_t count, T* dst);
  void (*to_float)(const T* src, int64_t count, float* dst);
};

extern const ElementwiseMicro<float> kScalarElementwiseF32;
extern const ElementwiseMicro<bf16> kScalarElementwiseBf16;
#if defined(__x86_64__)
extern const ElementwiseMicro<float> kAvx2ElementwiseF32;
extern const ElementwiseMicro<bf16> kAvx2ElementwiseBf16;
extern const ElementwiseMicro<float> kAvx512ElementwiseF32;
extern const ElementwiseMicro<bf16> kAvx512ElementwiseBf16;
#elif defined(DDI_NEON)
extern const ElementwiseMicro<float> kNeonElementwiseF32;
extern const ElementwiseMicro<bf16> kNeonElementwiseBf16;
#endif

// The table for current_isa().
template <class T>
const ElementwiseMicro<T>& elementwise_micro();

}  // namespace ddi
