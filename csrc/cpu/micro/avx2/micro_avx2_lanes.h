// A register of floats on AVX2: whole or the first few lanes, of any type in memory. `Lanes` is the
// same for code that is written once for all instruction sets. Included inside a target region,
// before all others; see isa_region.h.
#pragma once

namespace ddi {
namespace {

constexpr int kHalf = 8;  // lanes of a register, half a panel row

// kLaneMask + 8 - n starts n lanes of ones followed by zeros.
constexpr int32_t kLaneMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};

DDI_INLINE __m256i first_lanes(int64_t n) {
  const int64_t lanes = n >= kHalf ? kHalf : n < 0 ? 0 : n;
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLaneMask + kHalf - lanes));
}

// max returns its second operand if either is NaN, so NaN passes through.
DDI_INLINE __m256 activate(__m256 v, bool relu) {
  return relu ? _mm256_max_ps(_mm256_setzero_ps(), v) : v;
}

// n elements of any type as floats, the others zero.
DDI_INLINE __m256 load_first(const float* src, int64_t n) {
  return n >= kHalf ? _mm256_loadu_ps(src) : _mm256_maskload_ps(src, first_lanes(n));
}

DDI_INLINE __m128i load_16_bits(const void* src, int64_t n) {
  if (n >= kHalf) return _mm_loadu_si128(static_cast<const __m128i*>(src));
  alignas(16) char bytes[16] = {};
  __builtin_memcpy(bytes, src, static_cast<size_t>(n) * 2);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
}

DDI_INLINE __m256 load_first(const half* src, int64_t n) {
  return _mm256_cvtph_ps(load_16_bits(src, n));
}

DDI_INLINE __m256 load_first(const bf16* src, int64_t n) {
  const __m256i bits = _mm256_cvtepu16_epi32(load_16_bits(src, n));
  return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}

DDI_INLINE void store_first(float* dst, int64_t n, __m256 v) {
  if (n >= kHalf) {
    _mm256_storeu_ps(dst, v);
  } else {
    _mm256_maskstore_ps(dst, first_lanes(n), v);
  }
}

DDI_INLINE void store_16_bits(void* dst, int64_t n, __m128i v) {
  if (n >= kHalf) {
    _mm_storeu_si128(static_cast<__m128i*>(dst), v);
  } else {
    alignas(16) char bytes[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(bytes), v);
    __builtin_memcpy(dst, bytes, static_cast<size_t>(n) * 2);
  }
}

DDI_INLINE void store_first(half* dst, int64_t n, __m256 v) {
  store_16_bits(dst, n, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

DDI_INLINE void store_first(bf16* dst, int64_t n, __m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0xd8);
  store_16_bits(dst, n, _mm256_castsi256_si128(packed));
}

struct Lanes {
  using V = __m256;
  static constexpr int kCount = kHalf;
  template <class T>
  static DDI_INLINE V load(const T* src, int64_t n) {
    return load_first(src, n);
  }
  template <class T>
  static DDI_INLINE void store(T* dst, int64_t n, V v) {
    store_first(dst, n, v);
  }
  static DDI_INLINE V set(float a) { return _mm256_set1_ps(a); }
  static DDI_INLINE V add(V a, V b) { return _mm256_add_ps(a, b); }
  static DDI_INLINE V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static DDI_INLINE V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static DDI_INLINE V div(V a, V b) { return _mm256_div_ps(a, b); }
  static DDI_INLINE V madd(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static DDI_INLINE V activate(V v, bool relu) { return ddi::activate(v, relu); }
  // The second operand, which max returns if either is NaN, keeps its own; the blend keeps v's.
  static DDI_INLINE V max(V v, V so_far) {
    return _mm256_blendv_ps(_mm256_max_ps(v, so_far), v, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  }
  static DDI_INLINE V clamp(V v, float least, float most) {
    return _mm256_min_ps(set(most), _mm256_max_ps(set(least), v));
  }
  static DDI_INLINE V round(V v) {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static DDI_INLINE V power(V v) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static DDI_INLINE float sum(V v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
};

}  // namespace
}  // namespace ddi
