// Micro-kernels for NEON. Of its 32 registers, 64-bit ARM spends 20 on the sums of 5 pixels x 1
// panel, 5 on four activations of each pixel and 4 on a weight row: 80 multiply-adds by element
// take 21 loads. (6 pixels would leave 2 for weights, and compilers spill.) 32-bit ARM has half of
// that: 12 for the sums of 3 pixels, 1.5 for two activations of each, 2 for half a weight row; 24
// multiply-adds take 11 loads. There it is VMLA, which rounds twice: VFMA multiplies by no element,
// and is missing before VFPv4 (Cortex-A8, A9). Half precision is converted where pixels are moved,
// and computed like float; 32-bit ARM has no instructions for it that all NEON processors know, and
// takes the scalar kernels.
#include "base/isa.h"

#if defined(DDI_NEON)
#include <arm_neon.h>

#include <cstddef>

#include "base/isa_region.h"
#include "micro/micro.h"

DDI_REGION_NEON
#include "micro_neon_pixels.h"
#include "micro_neon_tile.h"
#include "micro_neon_weights.h"

namespace ddi {
namespace {

struct MultiplyFloats {
  struct Sums {
    float32x4_t quarter[4];
  };
  using Type = float;
  using Weights = float32x4_t;
#if defined(__aarch64__)
  static constexpr int kPixels = 5;
#else
  static constexpr int kPixels = 3;
#endif
  static DDI_INLINE Sums zero() {
    const float32x4_t none = vdupq_n_f32(0.0f);
    return {{none, none, none, none}};
  }
  static DDI_INLINE Weights weights(const float* row) { return vld1q_f32(row); }
  static DDI_INLINE float32x4_t inputs(uint32x4_t x) { return vreinterpretq_f32_u32(x); }
  template <int J>
  static DDI_INLINE void multiply_add(Sums& sums, int q, float32x4_t x, Weights w) {
#if defined(__aarch64__)
    if constexpr (J >= 0) {
      sums.quarter[q] = vfmaq_laneq_f32(sums.quarter[q], w, x, J);
      return;
    }
#endif
    sums.quarter[q] = ddi::multiply_add(sums.quarter[q], w, x);
  }
#if !defined(__aarch64__)
  static DDI_INLINE float32x2_t inputs(uint32x2_t x) { return vreinterpret_f32_u32(x); }
  template <int J>
  static DDI_INLINE void multiply_add(Sums& sums, int q, float32x2_t x, Weights w) {
    sums.quarter[q] = vmlaq_lane_f32(sums.quarter[q], w, x, J);
  }
#endif
  static DDI_INLINE float32x4_t value(const ConvTile<float>&, const Sums& sums, int q) {
    return sums.quarter[q];
  }
};

void affine_relu(int64_t pixels, int64_t channels, const float* scale, const float* shift,
                 float* data) {
  for (int64_t c = 0; c < channels; c += kQuarter) {
    const int64_t n = channels - c;
    const float32x4_t a = load_first(scale + c, n), b = load_first(shift + c, n);
    for (int64_t p = 0; p < pixels; ++p) {
      float* at = data + p * channels + c;
      store_first(at, n, activate(multiply_add(b, load_first(at, n), a), true));
    }
  }
}

void scatter_pixels(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                    int64_t dst_stride, float* dst) {
  for (int64_t p = 0; p < pixels; ++p, src += src_stride, dst += dst_stride) {
    int64_t i = 0;
    for (int64_t c = 0; c < set.channels; c += kQuarter) {
      const uint32_t mask = mask_of(set, c);
      const int count = kShuffles<1>.count[mask];
      if (count == kQuarter) {
        vst1q_f32(dst + c, vld1q_f32(src + i));
      } else {
        for (int j = 0; j < count; ++j) dst[set.index[i + j]] = src[i + j];
      }
      i += count;
    }
  }
}

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

const Micro<float> kNeonF32 = {{0, MultiplyFloats::kPixels, 0, 0},
                               4,
                               conv_tile<MultiplyFloats>,
                               compress_panel<float>,
                               compress_pixels<float>,
                               gather_planes<float>,
                               affine_relu,
                               interleave,
                               deinterleave,
                               expand_pixels<float>,
                               scatter_pixels,
                               fill_closed<float>,
                               scatter_planes<float>,
                               sum_pixels<float>,
                               nullptr,
                               nullptr};

#if defined(__aarch64__)
const Micro<half> kNeonF16 = {{0, MultiplyFloats::kPixels, 0, 0},
                              4,
                              conv_tile<MultiplyFloats>,
                              compress_panel<half>,
                              compress_pixels<half>,
                              gather_planes<half>,
                              nullptr,
                              interleave,
                              deinterleave,
                              expand_pixels<half>,
                              nullptr,
                              fill_closed<half>,
                              scatter_planes<half>,
                              sum_pixels<half>,
                              nullptr,
                              nullptr};
#endif

}  // namespace ddi
#endif
