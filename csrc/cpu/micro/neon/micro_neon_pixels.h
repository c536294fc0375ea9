// Moving activations in and out of compact form, for the NEON micro-kernels of all types. Four
// channels at a time: both ways are a byte shuffle looked up by four bits of a mask. Included
// inside a target region, before what else it holds; see isa_region.h.
#pragma once

namespace ddi {
namespace {

constexpr int kQuarter = 4;  // lanes of a register, a quarter of a panel row

// Byte shuffles by mask, of lanes of so many bytes: `pack` moves the chosen lanes to the front,
// `spread` moves the first lanes to the chosen places and zeros to the others, whose index is out
// of range. `count` because counting bits takes a detour through vector registers.
template <int kBytes>
struct Shuffles {
  uint8_t pack[16][kQuarter * kBytes];
  uint8_t spread[16][kQuarter * kBytes];
  uint8_t count[16];
};

template <int kBytes>
constexpr Shuffles<kBytes> make_shuffles() {
  Shuffles<kBytes> table = {};
  for (int mask = 0; mask < 16; ++mask) {
    int n = 0;
    for (int lane = 0; lane < kQuarter; ++lane) {
      const bool chosen = (mask >> lane) & 1;
      for (int b = 0; b < kBytes; ++b) {
        table.spread[mask][lane * kBytes + b] =
            static_cast<uint8_t>(chosen ? n * kBytes + b : 0xff);
        if (chosen) table.pack[mask][n * kBytes + b] = static_cast<uint8_t>(lane * kBytes + b);
      }
      n += chosen;
    }
    table.count[mask] = static_cast<uint8_t>(n);
  }
  return table;
}

template <int kBytes>
constexpr Shuffles<kBytes> kShuffles = make_shuffles<kBytes>();

DDI_INLINE uint32_t mask_of(const ChannelSet& set, int64_t c) {
  return (set.bits[c / kLanes] >> (c % kLanes)) & 0xfu;
}

DDI_INLINE float32x4_t shuffle(float32x4_t v, const uint8_t* entry) {
  const uint8x16_t bytes = vreinterpretq_u8_f32(v), index = vld1q_u8(entry);
#if defined(__aarch64__)
  return vreinterpretq_f32_u8(vqtbl1q_u8(bytes, index));
#else
  const uint8x8x2_t table = {{vget_low_u8(bytes), vget_high_u8(bytes)}};
  return vreinterpretq_f32_u8(
      vcombine_u8(vtbl2_u8(table, vget_low_u8(index)), vtbl2_u8(table, vget_high_u8(index))));
#endif
}

// acc + a * b.
DDI_INLINE float32x4_t multiply_add(float32x4_t acc, float32x4_t a, float32x4_t b) {
#if defined(__aarch64__)
  return vfmaq_f32(acc, a, b);
#else
  return vmlaq_f32(acc, a, b);
#endif
}

// As the scalar kernels have it: NaN and -0 pass through. Compared as integers, because NEON takes
// denormals as zeros on 32-bit ARM, where GCC compares floats one by one instead.
DDI_INLINE float32x4_t activate(float32x4_t v, bool relu) {
  if (!relu) return v;
  const uint32x4_t bits = vreinterpretq_u32_f32(v), least = vdupq_n_u32(0x80000001);
  const uint32x4_t negative = vcleq_u32(vsubq_u32(bits, least), vdupq_n_u32(0x7f7fffff));
  return vreinterpretq_f32_u32(vbicq_u32(bits, negative));
}

// Four elements of any type as floats, and back.
DDI_INLINE float32x4_t load(const float* src) { return vld1q_f32(src); }

DDI_INLINE float32x4_t load(const bf16* src) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&src->bits), 16));
}

DDI_INLINE void store(float* dst, float32x4_t v) { vst1q_f32(dst, v); }

DDI_INLINE void store(bf16* dst, float32x4_t v) {
  const uint32x4_t bits = vreinterpretq_u32_f32(v), one = vdupq_n_u32(1);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), one);
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  const uint32x4_t nan = vcgtq_u32(vshlq_n_u32(bits, 1), vdupq_n_u32(0xff000000));
  vst1_u16(&dst->bits, vshrn_n_u32(vbslq_u32(nan, quiet, rounded), 16));
}

#if defined(__aarch64__)
DDI_INLINE float32x4_t load(const half* src) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&src->bits)));
}

DDI_INLINE void store(half* dst, float32x4_t v) {
  vst1_u16(&dst->bits, vreinterpret_u16_f16(vcvt_f16_f32(v)));
}
#endif

// n < 4 elements.
template <class T>
DDI_INLINE void copy_few(const T* src, int64_t n, T* dst) {
  if (n > 0) dst[0] = src[0];
  if (n > 1) dst[1] = src[1];
  if (n > 2) dst[2] = src[2];
}

// The first n elements, the others zero.
template <class T>
DDI_INLINE float32x4_t load_first(const T* src, int64_t n) {
  if (n >= kQuarter) return load(src);
  T few[kQuarter] = {};
  copy_few(src, n, few);
  return load(few);
}

template <class T>
DDI_INLINE void store_first(T* dst, int64_t n, float32x4_t v) {
  if (n >= kQuarter) {
    store(dst, v);
  } else {
    T few[kQuarter];
    store(few, v);
    copy_few(few, n, dst);
  }
}

constexpr int64_t kPrefetchPixels = 16;

// Moves the open ones of four neighbouring channels, n of which exist, to the front. Whole
// registers are stored: what one spills the next channels, pixel or row overwrites.
template <class T>
DDI_INLINE void move_open(const T* src, int64_t n, uint32_t mask, float* dst) {
  vst1q_f32(dst, shuffle(load_first(src, n), kShuffles<4>.pack[mask]));
}

DDI_INLINE void move_open(const bf16* src, int64_t n, uint32_t mask, bf16* dst) {
  bf16 few[kQuarter] = {};
  if (n < kQuarter) copy_few(src, n, few);
  const uint8x8_t v = vreinterpret_u8_u16(vld1_u16(n < kQuarter ? &few->bits : &src->bits));
  vst1_u16(&dst->bits, vreinterpret_u16_u8(vtbl1_u8(v, vld1_u8(kShuffles<2>.pack[mask]))));
}

// Four bytes, the first n of src and zeros.
DDI_INLINE uint8x8_t load_bytes(const void* src, int64_t n) {
  uint32_t bytes = 0;
  if (n >= kQuarter) {
    __builtin_memcpy(&bytes, src, sizeof(bytes));
  } else {
    uint8_t few[kQuarter] = {};
    copy_few(static_cast<const uint8_t*>(src), n, few);
    __builtin_memcpy(&bytes, few, sizeof(bytes));
  }
  return vcreate_u8(bytes);
}

DDI_INLINE void move_open(const int8_t* src, int64_t n, uint32_t mask, int8_t* dst) {
  const uint8x8_t index = load_bytes(kShuffles<1>.pack[mask], kQuarter);
  const uint8x8_t v = veor_u8(vtbl1_u8(load_bytes(src, n), index), vdup_n_u8(0x80));
  const uint32_t bytes = vget_lane_u32(vreinterpret_u32_u8(v), 0);
  __builtin_memcpy(dst, &bytes, sizeof(bytes));
}

// What compact pixels of x of type T consist of.
template <class T>
struct Stored {
  using Type = float;
};
template <>
struct Stored<bf16> {
  using Type = bf16;
};
template <>
struct Stored<int8_t> {
  using Type = int8_t;
};

template <class T>
void compress_pixels(const T* src, int64_t pixel_stride, int64_t pixels, const ChannelSet& set,
                     typename Types<T>::Cell* cells) {
  constexpr int kPack = Types<T>::kPack;
  auto* dst = reinterpret_cast<typename Stored<T>::Type*>(cells);
  const int64_t ahead = kPrefetchPixels * pixel_stride;
  const int64_t missing = (kPack - set.open % kPack) % kPack;  // of the last cell
  for (int64_t p = 0; p < pixels; ++p, src += pixel_stride) {
    for (int64_t c = 0; c < set.channels; c += kQuarter) {
      const uint32_t mask = mask_of(set, c);
      if (c % kLanes == 0 && set.bits[c / kLanes] != 0) __builtin_prefetch(src + c + ahead);
      if (mask == 0) continue;
      move_open(src + c, set.channels - c, mask, dst);
      dst += kShuffles<1>.count[mask];
    }
    if (kPack > 1)
      __builtin_memcpy(dst, &Types<T>::kZero, static_cast<size_t>(missing * 4 / kPack));
    dst += missing;
  }
}

template <class Out>
void expand_pixels(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                   const Out* residual, bool relu, int64_t dst_stride, Out* dst) {
  for (int64_t p = 0; p < pixels; ++p, src += src_stride, dst += dst_stride) {
    const float* s = src;
    for (int64_t c = 0; c < set.channels; c += kQuarter) {
      const uint32_t mask = mask_of(set, c);
      float32x4_t v = shuffle(vld1q_f32(s), kShuffles<4>.spread[mask]);
      if (residual != nullptr) v = vaddq_f32(v, load_first(residual + c, set.channels - c));
      store_first(dst + c, set.channels - c, activate(v, relu));
      s += kShuffles<1>.count[mask];
    }
    if (residual != nullptr) residual += dst_stride;
  }
}

template <class Out>
void fill_closed(int64_t pixels, const ChannelSet& set, const Out* residual, bool relu,
                 int64_t dst_stride, Out* dst) {
  for (int64_t p = 0; p < pixels; ++p, dst += dst_stride) {
    for (int64_t c = 0; c < set.channels; c += kQuarter) {
      if (set.bits[c / kLanes] != 0) continue;
      const int64_t n = set.channels - c;
      const float32x4_t v = residual == nullptr ? vdupq_n_f32(0.0f) : load_first(residual + c, n);
      store_first(dst + c, n, activate(v, relu));
    }
    if (residual != nullptr) residual += dst_stride;
  }
}

// r[i][j] -> r[j][i].
DDI_INLINE void transpose(float32x4_t (&r)[kQuarter]) {
  const float32x4x2_t a = vtrnq_f32(r[0], r[1]), b = vtrnq_f32(r[2], r[3]);
  DDI_UNROLL
  for (int i = 0; i < 2; ++i) {
    r[i] = vcombine_f32(vget_low_f32(a.val[i]), vget_low_f32(b.val[i]));
    r[i + 2] = vcombine_f32(vget_high_f32(a.val[i]), vget_high_f32(b.val[i]));
  }
}

// Four pixels of cell k.
template <class T>
DDI_INLINE float32x4_t load_planes(const T* src, int64_t channel_stride, const ChannelSet& set,
                                   int64_t k, int64_t pixels) {
  return load_first(src + set.index[k] * channel_stride, pixels);
}

DDI_INLINE uint32x4_t load_plane(const bf16* src, int64_t pixels) {
  bf16 few[kQuarter] = {};
  if (pixels < kQuarter) copy_few(src, pixels, few);
  return vmovl_u16(vld1_u16(pixels < kQuarter ? &few->bits : &src->bits));
}

DDI_INLINE uint32x4_t load_plane(const int8_t* src, int64_t pixels) {
  return vmovl_u16(vget_low_u16(vmovl_u8(load_bytes(src, pixels))));
}

template <class T>
DDI_INLINE float32x4_t join_planes(const T* src, int64_t channel_stride, const ChannelSet& set,
                                   int64_t k, int64_t pixels) {
  constexpr int kPack = Types<T>::kPack;
  uint32x4_t cells = vdupq_n_u32(Types<T>::kZero);
  for (int j = 0; j < kPack && k * kPack + j < set.open; ++j) {
    const uint32x4_t plane = load_plane(src + set.index[k * kPack + j] * channel_stride, pixels);
    cells = veorq_u32(cells, vshlq_u32(plane, vdupq_n_s32(32 / kPack * j)));
  }
  return vreinterpretq_f32_u32(cells);
}

DDI_INLINE float32x4_t load_planes(const bf16* src, int64_t channel_stride, const ChannelSet& set,
                                   int64_t k, int64_t pixels) {
  return join_planes(src, channel_stride, set, k, pixels);
}

DDI_INLINE float32x4_t load_planes(const int8_t* src, int64_t channel_stride, const ChannelSet& set,
                                   int64_t k, int64_t pixels) {
  return join_planes(src, channel_stride, set, k, pixels);
}

template <class T>
void gather_planes(const T* src, int64_t channel_stride, int64_t pixels, const ChannelSet& set,
                   typename Types<T>::Cell* dst) {
  const int64_t cells = (set.open + Types<T>::kPack - 1) / Types<T>::kPack;
  for (int64_t p = 0; p < pixels; p += kQuarter) {
    for (int64_t i = 0; i < cells; i += kQuarter) {
      float32x4_t r[kQuarter];
      for (int k = 0; k < kQuarter; ++k) {
        r[k] = i + k < cells ? load_planes(src + p, channel_stride, set, i + k, pixels - p)
                             : vdupq_n_f32(0.0f);
      }
      transpose(r);
      for (int k = 0; k < kQuarter && p + k < pixels; ++k) {
        store_first(reinterpret_cast<float*>(dst + (p + k) * cells + i), cells - i, r[k]);
      }
    }
  }
}

template <class Out>
void scatter_planes(const float* src, int64_t src_stride, int64_t pixels, const ChannelSet& set,
                    int64_t channel_stride, const Out* residual, bool relu, Out* dst) {
  for (int64_t p = 0; p < pixels; p += kQuarter) {
    for (int64_t i = 0; i < set.open; i += kQuarter) {
      float32x4_t r[kQuarter];
      for (int k = 0; k < kQuarter; ++k) {
        r[k] = p + k < pixels ? vld1q_f32(src + (p + k) * src_stride + i) : vdupq_n_f32(0.0f);
      }
      transpose(r);
      for (int k = 0; k < kQuarter && i + k < set.open; ++k) {
        const int64_t at = set.index[i + k] * channel_stride + p;
        float32x4_t v = r[k];
        if (residual != nullptr) v = vaddq_f32(v, load_first(residual + at, pixels - p));
        store_first(dst + at, pixels - p, activate(v, relu));
      }
    }
  }
}

// A panel of channels at a time: strides are long, and a line is read once.
template <class Out>
void sum_pixels(const Out* src, int64_t pixel_stride, int64_t pixels, int64_t channels,
                float* sum) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    float32x4_t acc[kQuarter];
    for (int q = 0; q < kQuarter; ++q) acc[q] = vdupq_n_f32(0.0f);
    for (int64_t p = 0; p < pixels; ++p) {
      const Out* pixel = src + p * pixel_stride + c;
      DDI_UNROLL
      for (int q = 0; q < kQuarter; ++q) {
        const int64_t at = q * kQuarter;
        acc[q] = vaddq_f32(acc[q], load_first(pixel + at, channels - c - at));
      }
    }
    for (int q = 0; q < kQuarter; ++q) {
      const int64_t at = q * kQuarter;
      store_first(sum + c + at, channels - c - at, acc[q]);
    }
  }
}

}  // namespace
}  // namespace ddi
