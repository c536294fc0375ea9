// A register of floats on AVX-512: whole or the first few lanes, of any type in memory. `Lanes` is
// the same for code that is written once for all instruction sets. Included inside a target region,
// before all others; see isa_region.h.
#pragma once

namespace ddi {
namespace {

DDI_INLINE __mmask16 first_lanes(int64_t n) {
  return n >= kLanes ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << n) - 1u);
}

// max returns its second operand if either is NaN, so NaN passes through.
DDI_INLINE __m512 activate(__m512 v, bool relu) {
  return relu ? _mm512_max_ps(_mm512_setzero_ps(), v) : v;
}

// Elements of any type as floats. Masked stores are slow on some machines, and masked loads keep
// the hardware from fetching ahead: both are used at the ends of rows only.
DDI_INLINE __m512 load_lanes(const float* src, __mmask16 lanes) {
  return lanes == 0xffff ? _mm512_loadu_ps(src) : _mm512_maskz_loadu_ps(lanes, src);
}

DDI_INLINE __m256i load_16_bits(const void* src, __mmask16 lanes) {
  return lanes == 0xffff ? _mm256_loadu_si256(static_cast<const __m256i*>(src))
                         : _mm256_maskz_loadu_epi16(lanes, src);
}

DDI_INLINE __m512 load_lanes(const half* src, __mmask16 lanes) {
  return _mm512_cvtph_ps(load_16_bits(src, lanes));
}

DDI_INLINE __m512 load_lanes(const bf16* src, __mmask16 lanes) {
  const __m512i bits = _mm512_cvtepu16_epi32(load_16_bits(src, lanes));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

DDI_INLINE void store_lanes(float* dst, __mmask16 lanes, __m512 v) {
  if (lanes == 0xffff) {
    _mm512_storeu_ps(dst, v);
  } else {
    _mm512_mask_storeu_ps(dst, lanes, v);
  }
}

DDI_INLINE void store_16_bits(void* dst, __mmask16 lanes, __m256i v) {
  if (lanes == 0xffff) {
    _mm256_storeu_si256(static_cast<__m256i*>(dst), v);
  } else {
    _mm256_mask_storeu_epi16(dst, lanes, v);
  }
}

DDI_INLINE void store_lanes(half* dst, __mmask16 lanes, __m512 v) {
  store_16_bits(dst, lanes, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

DDI_INLINE void store_lanes(bf16* dst, __mmask16 lanes, __m512 v) {
  const __m512i bits = _mm512_castps_si512(v), one = _mm512_set1_epi32(1);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  store_16_bits(dst, lanes, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

struct Lanes {
  using V = __m512;
  static constexpr int kCount = 16;
  template <class T>
  static DDI_INLINE V load(const T* src, int64_t n) {
    return n >= kCount ? load_lanes(src, 0xffff) : load_lanes(src, first_lanes(n));
  }
  template <class T>
  static DDI_INLINE void store(T* dst, int64_t n, V v) {
    n >= kCount ? store_lanes(dst, 0xffff, v) : store_lanes(dst, first_lanes(n), v);
  }
  static DDI_INLINE V set(float a) { return _mm512_set1_ps(a); }
  static DDI_INLINE V add(V a, V b) { return _mm512_add_ps(a, b); }
  static DDI_INLINE V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static DDI_INLINE V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static DDI_INLINE V div(V a, V b) { return _mm512_div_ps(a, b); }
  static DDI_INLINE V madd(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static DDI_INLINE V activate(V v, bool relu) { return ddi::activate(v, relu); }
  // The second operand, which max returns if either is NaN, keeps its own; the mask keeps v's.
  static DDI_INLINE V max(V v, V so_far) {
    return _mm512_mask_max_ps(v, _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), v, so_far);
  }
  static DDI_INLINE V clamp(V v, float least, float most) {
    return _mm512_min_ps(set(most), _mm512_max_ps(set(least), v));
  }
  static DDI_INLINE V round(V v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static DDI_INLINE V power(V v) { return _mm512_scalef_ps(set(1), v); }
  static DDI_INLINE float sum(V v) { return _mm512_reduce_add_ps(v); }
};

}  // namespace
}  // namespace ddi
