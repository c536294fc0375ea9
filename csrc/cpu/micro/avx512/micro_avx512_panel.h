// Compressed weight panels of cells that hold several channels, for AVX-512 micro-kernels. Included
// inside a target region; see isa_region.h.
#pragma once

namespace ddi {
namespace {

// A row of cells whose channels come from these rows of channels, in the lanes of the packed panel.
template <int kPack>
DDI_INLINE __m512i join_rows(const uint32_t* src, const int32_t* row) {
  constexpr int kBits = 32 / kPack;
  if (row[0] >= 0 && row[0] % kPack == 0 && row[kPack - 1] == row[0] + kPack - 1) {
    return _mm512_loadu_si512(src + static_cast<int64_t>(row[0] / kPack) * kLanes);
  }
  const __m512i channel = _mm512_set1_epi32((1 << kBits) - 1);
  __m512i cells = _mm512_setzero_si512();
  DDI_UNROLL
  for (int j = 0; j < kPack; ++j) {
    if (row[j] < 0) continue;
    const __m512i source = _mm512_loadu_si512(src + static_cast<int64_t>(row[j] / kPack) * kLanes);
    const __m128i down = _mm_cvtsi32_si128(kBits * (row[j] % kPack));
    const __m512i one = _mm512_and_si512(_mm512_srl_epi32(source, down), channel);
    cells = _mm512_or_si512(cells, _mm512_sll_epi32(one, _mm_cvtsi32_si128(kBits * j)));
  }
  return cells;
}

template <int kPack>
void compress_cells(const PanelMoveOf<uint32_t>* moves, int n_moves, const int32_t* row,
                    int64_t steps, uint32_t* dst) {
  for (int64_t k = 0; k < steps; ++k, dst += kLanes, row += kPack) {
    const int64_t later = static_cast<int64_t>(row[kPrefetchRows] / kPack) * kLanes;
    __m512i v = _mm512_setzero_si512();
    for (int m = 0; m < n_moves; ++m) {
      _mm_prefetch(reinterpret_cast<const char*>(moves[m].src + later), _MM_HINT_T0);
      v = _mm512_mask_permutexvar_epi32(v, static_cast<__mmask16>(moves[m].mask),
                                        _mm512_loadu_si512(moves[m].from),
                                        join_rows<kPack>(moves[m].src, row));
    }
    _mm512_storeu_si512(dst, v);
  }
}

}  // namespace
}  // namespace ddi
