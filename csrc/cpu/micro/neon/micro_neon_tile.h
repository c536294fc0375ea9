// The register tile of the NEON micro-kernels, for an Op that says how a cell is multiplied, and
// the shuffling of strips. A panel row is four registers. The activations of a pixel are loaded
// kGroup cells at a time and multiplied by element, so that one load serves kGroup rows and no
// register holds a repeated activation. Included inside a target region, after
// micro_neon_pixels.h; see isa_region.h.
//
// An Op has
//   Type                 of x
//   kPixels              of its largest tile
//   Sums, Weights        registers of kLanes sums, of a quarter of a panel row
//   zero(), weights(row)
//   inputs(cells)        of a Group, and of a register of four cells
//   multiply_add<J>(sums, q, x, w)
//                        to quarter q; by cell J of a group, or by four cells if J < 0
//   value(tile, sums, q) what quarter q of the sums stands for, in float
#pragma once

namespace ddi {
namespace {

// kTogether quarters of a weight row are loaded together. 16 registers hold half of it, and the
// activations of 3 pixels only if those are half as long.
#if defined(__aarch64__)
using Group = uint32x4_t;
constexpr int kTogether = 4;
#else
using Group = uint32x2_t;
constexpr int kTogether = 2;
#endif
constexpr int kGroup = sizeof(Group) / 4;

DDI_INLINE uint32x4_t load_row(const float* a) { return vreinterpretq_u32_f32(vld1q_f32(a)); }
DDI_INLINE uint32x4_t load_row(const uint32_t* a) { return vld1q_u32(a); }

DDI_INLINE uint32x2_t load_pair(const float* a) { return vreinterpret_u32_f32(vld1_f32(a)); }
DDI_INLINE uint32x2_t load_pair(const uint32_t* a) { return vld1_u32(a); }

template <class Cell>
DDI_INLINE Group load_group(const Cell* a) {
#if defined(__aarch64__)
  return load_row(a);
#else
  return load_pair(a);
#endif
}

// One cell, repeated.
template <class Cell>
DDI_INLINE Group load_one(const Cell* a) {
  uint32_t bits;
  __builtin_memcpy(&bits, a, sizeof(bits));
#if defined(__aarch64__)
  return vdupq_n_u32(bits);
#else
  return vdup_n_u32(bits);
#endif
}

// S neighbouring cells, repeated over the lanes; of a group if S = 1.
template <int S, class Cell>
DDI_INLINE auto load_strips(const Cell* a) {
  if constexpr (S == 4) {
    return load_row(a);
  } else if constexpr (S == 2) {
    return vcombine_u32(load_pair(a), load_pair(a));
  } else {
    return load_one(a);
  }
}

// One panel row times one cell, or S neighbouring ones, of every pixel.
template <class Op, int P, int J, class X, class Cell>
DDI_INLINE void add_row(typename Op::Sums (&acc)[P], const X (&x)[P], const Cell* row) {
  DDI_UNROLL
  for (int q = 0; q < 4; ++q) {
    const typename Op::Weights w = Op::weights(row + q * kQuarter);
    DDI_UNROLL
    for (int p = 0; p < P; ++p) Op::template multiply_add<J>(acc[p], q, x[p], w);
    // Else compilers load weights too early, and sums go through memory to make room.
    if ((q + 1) % kTogether == 0) __asm__ volatile("" ::: "memory");
  }
}

template <class Op, int P>
DDI_INLINE void finish(const ConvTile<typename Op::Type>& t, const typename Op::Sums (&acc)[P]) {
  constexpr int kFirst = (P + 1) / 2;
  DDI_UNROLL
  for (int p = 0; p < P; ++p) {
    const int run = p < kFirst ? 0 : 1;
    DDI_UNROLL
    for (int q = 0; q < 4; ++q) {
      const int lane = q * kQuarter;
      const int64_t at = (p - run * kFirst) * t.out_stride + t.out_at[0] + lane;
      float32x4_t v = Op::value(t, acc[p], q);
      if (t.bias == nullptr) {
        vst1q_f32(t.out[run] + at, v);
        continue;
      }
      const int64_t n = t.last_lanes - lane;
      v = vaddq_f32(v, vld1q_f32(t.bias + lane));
      if (t.scale != nullptr) v = vmulq_f32(v, vld1q_f32(t.scale + lane));
      if (t.residual[0] != nullptr) v = vaddq_f32(v, load_first(t.residual[run] + at, n));
      store_first(t.out[run] + at, n, activate(v, t.relu));
    }
  }
}

// Rows J, ..., kGroup - 1 of a group.
template <class Op, int P, bool kListed, int J = 0, class X, class Cell>
DDI_INLINE void add_group(typename Op::Sums (&acc)[P], const X (&x)[P], const Cell* w,
                          const int32_t* row) {
  const ptrdiff_t at = kListed ? row[J] : J;
  add_row<Op, P, J>(acc, x, w + at * kLanes);
  if constexpr (J + 1 < kGroup) add_group<Op, P, kListed, J + 1>(acc, x, w, row);
}

template <class Op, int P, int S, bool kListed>
void conv_tile_of(const ConvTile<typename Op::Type>& t) {
  using Cell = typename Types<typename Op::Type>::Cell;
  constexpr int kFirst = (P + 1) / 2, kOne = S == 1 ? 0 : -1;
  typename Op::Sums acc[P];
  DDI_UNROLL
  for (int p = 0; p < P; ++p) acc[p] = Op::zero();
  const ptrdiff_t stride = static_cast<ptrdiff_t>(t.pixel_stride);
  const int32_t* row = t.row;
  for (int64_t s = 0; s < t.segments; ++s) {
    const Segment& segment = t.segment[s];
    const Cell *a0 = t.in[0] + segment.offset, *a1 = t.in[1] + segment.offset;
    const Cell* w = t.weight[0] + (kListed ? 0 : segment.row * kLanes);
    ptrdiff_t left = static_cast<ptrdiff_t>(segment.length);
    if constexpr (S == 1) {
      for (; left >= kGroup; left -= kGroup, a0 += kGroup, a1 += kGroup) {
        decltype(Op::inputs(load_group(a0))) x[P];
        DDI_UNROLL
        for (int p = 0; p < P; ++p) {
          x[p] = Op::inputs(load_group(p < kFirst ? a0 + p * stride : a1 + (p - kFirst) * stride));
        }
        add_group<Op, P, kListed>(acc, x, w, row);
        if (kListed) row += kGroup;
        if (!kListed) w += kGroup * kLanes;
      }
    }
    for (; left > 0; --left, a0 += S, a1 += S) {
      decltype(Op::inputs(load_strips<S>(a0))) x[P];
      DDI_UNROLL
      for (int p = 0; p < P; ++p) {
        x[p] =
            Op::inputs(load_strips<S>(p < kFirst ? a0 + p * stride : a1 + (p - kFirst) * stride));
      }
      add_row<Op, P, kOne>(acc, x, kListed ? w + static_cast<ptrdiff_t>(*row++) * kLanes : w);
      if (!kListed) w += kLanes;
    }
  }
  finish<Op, P>(t, acc);
}

template <class Op, int S, bool kListed, int P = Op::kPixels>
void run_tile(const ConvTile<typename Op::Type>& t, int pixels) {
  if (pixels == P) {
    conv_tile_of<Op, P, S, kListed>(t);
  } else if constexpr (P > 1) {
    run_tile<Op, S, kListed, P - 1>(t, pixels);
  }
}

template <class Op>
void conv_tile(const ConvTile<typename Op::Type>& t, int pixels, int /*panels: always 1*/,
               int strips) {
  if (strips == 2) return run_tile<Op, 2, false>(t, pixels);
  if (strips == 4) return run_tile<Op, 4, false>(t, pixels);
  if constexpr (Types<typename Op::Type>::kPack == 1) {  // else weights are compressed instead
    if (t.row != nullptr) return run_tile<Op, 1, true>(t, pixels);
  }
  run_tile<Op, 1, false>(t, pixels);
}

inline void interleave(const float* src, int64_t src_stride, int strips, int64_t count,
                       float* dst) {
  for (int64_t i = 0; i < count; i += kQuarter, src += kQuarter, dst += kQuarter * strips) {
    const float32x4_t a = vld1q_f32(src), b = vld1q_f32(src + src_stride);
    if (strips == 2) {
      const float32x4x2_t v = {{a, b}};
      vst2q_f32(dst, v);
    } else {
      const float32x4x4_t v = {
          {a, b, vld1q_f32(src + 2 * src_stride), vld1q_f32(src + 3 * src_stride)}};
      vst4q_f32(dst, v);
    }
  }
}

// Only moves, whatever the bits mean.
inline void interleave(const uint32_t* src, int64_t src_stride, int strips, int64_t count,
                       uint32_t* dst) {
  interleave(reinterpret_cast<const float*>(src), src_stride, strips, count,
             reinterpret_cast<float*>(dst));
}

inline void deinterleave(const float* src, int strips, int64_t count, int64_t dst_stride,
                         float* dst) {
  for (int64_t i = 0; i < count; i += kQuarter, src += kQuarter * strips, dst += kQuarter) {
    if (strips == 2) {
      const float32x4x2_t v = vld2q_f32(src);
      for (int s = 0; s < 2; ++s) vst1q_f32(dst + s * dst_stride, v.val[s]);
    } else {
      const float32x4x4_t v = vld4q_f32(src);
      for (int s = 0; s < 4; ++s) vst1q_f32(dst + s * dst_stride, v.val[s]);
    }
  }
}

}  // namespace
}  // namespace ddi
