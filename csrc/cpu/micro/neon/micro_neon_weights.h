// Compressing weight panels for the NEON micro-kernels of all types. On 64-bit ARM a whole row of a
// packed panel, four registers, is the table of one byte shuffle for each quarter of the compressed
// row; on 32-bit ARM, whose tables are half as long, cells are copied one by one. Included inside a
// target region, after micro_neon_pixels.h; see isa_region.h.
#pragma once

namespace ddi {
namespace {

// The cells of the rows of channels row[0], ..., row[kPack - 1], a quarter of the columns.
template <class T>
DDI_INLINE uint32x4_t join_rows(const typename Types<T>::Cell* src, const int32_t* row) {
  constexpr int kPack = Types<T>::kPack, kBits = 32 / kPack;
  if constexpr (kPack == 1) {
    return vreinterpretq_u32_f32(vld1q_f32(src + static_cast<ptrdiff_t>(*row) * kLanes));
  } else {
    uint32x4_t cells = vdupq_n_u32(0);
    DDI_UNROLL
    for (int j = 0; j < kPack; ++j) {
      if (row[j] < 0) continue;
      const uint32x4_t v = vld1q_u32(src + static_cast<ptrdiff_t>(row[j] / kPack) * kLanes);
      const uint32x4_t one = vandq_u32(vshlq_u32(v, vdupq_n_s32(-kBits * (row[j] % kPack))),
                                       vdupq_n_u32((1u << kBits) - 1u));
      cells = vorrq_u32(cells, vshlq_u32(one, vdupq_n_s32(kBits * j)));
    }
    return cells;
  }
}

#if defined(__aarch64__)
// Where the bytes of each quarter come from; out of range where a move does not fill a lane.
struct Shuffle {
  uint8_t index[4][16];
};

template <class Cell>
void shuffle_of(const PanelMoveOf<Cell>& move, Shuffle* out) {
  for (int l = 0; l < kLanes; ++l) {
    const bool filled = (move.mask >> l) & 1u;
    for (int b = 0; b < 4; ++b) {
      out->index[l / 4][l % 4 * 4 + b] = static_cast<uint8_t>(filled ? move.from[l] * 4 + b : 0xff);
    }
  }
}

template <class T>
void compress_panel(const PanelMove<T>* moves, int n_moves, const int32_t* row, int64_t steps,
                    typename Types<T>::Cell* dst) {
  constexpr int kPack = Types<T>::kPack;
  Shuffle shuffles[kLanes];
  for (int m = 0; m < n_moves; ++m) shuffle_of(moves[m], &shuffles[m]);
  for (int64_t k = 0; k < steps; ++k, dst += kLanes, row += kPack) {
    const ptrdiff_t later = static_cast<ptrdiff_t>(row[kPrefetchRows] / kPack) * kLanes;
    uint8x16_t out[4];
    for (int q = 0; q < 4; ++q) out[q] = vdupq_n_u8(0);
    for (int m = 0; m < n_moves; ++m) {
      __builtin_prefetch(moves[m].src + later);
      uint8x16x4_t columns;
      DDI_UNROLL
      for (int q = 0; q < 4; ++q) {
        columns.val[q] = vreinterpretq_u8_u32(join_rows<T>(moves[m].src + q * kQuarter, row));
      }
      DDI_UNROLL
      for (int q = 0; q < 4; ++q) {
        out[q] = vqtbx4q_u8(out[q], columns, vld1q_u8(shuffles[m].index[q]));
      }
    }
    for (int q = 0; q < 4; ++q) {
      vst1q_f32(reinterpret_cast<float*>(dst + q * kQuarter), vreinterpretq_f32_u8(out[q]));
    }
  }
}
#else
template <class T>
void compress_panel(const PanelMove<T>* moves, int n_moves, const int32_t* row, int64_t steps,
                    typename Types<T>::Cell* dst) {
  for (int64_t k = 0; k < steps; ++k, dst += kLanes, row += Types<T>::kPack) {
    for (int l = 0; l < kLanes; ++l) dst[l] = 0;
    for (int m = 0; m < n_moves; ++m) {
      typename Types<T>::Cell columns[kLanes];
      for (int l = 0; l < kLanes; l += kQuarter) {
        vst1q_f32(reinterpret_cast<float*>(columns + l),
                  vreinterpretq_f32_u32(join_rows<T>(moves[m].src + l, row)));
      }
      for (uint32_t lanes = moves[m].mask; lanes != 0; lanes &= lanes - 1) {
        const int l = __builtin_ctz(lanes);
        dst[l] = columns[moves[m].from[l]];
      }
    }
  }
}
#endif

}  // namespace
}  // namespace ddi
