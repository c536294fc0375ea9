// Winograd transforms for NEON: a panel row is four registers.
#include "isa.h"

#if defined(DDI_NEON)
#include <arm_neon.h>

#include "isa_region.h"
#include "micro.h"
#include "micro_winograd.h"
#include "winograd.h"

DDI_REGION_NEON
#include "micro_neon_pixels.h"
#include "micro_winograd_tiles.h"

namespace ddi {
namespace {

struct Lanes {
  using V = float32x4_t;
  static constexpr int kCount = kQuarter;
  static DDI_INLINE V load(const float* src, int64_t n) { return load_first(src, n); }
  static DDI_INLINE void store(float* dst, int64_t n, V v) { store_first(dst, n, v); }
  static DDI_INLINE V set(float a) { return vdupq_n_f32(a); }
  static DDI_INLINE V add(V a, V b) { return vaddq_f32(a, b); }
  static DDI_INLINE V sub(V a, V b) { return vsubq_f32(a, b); }
  static DDI_INLINE V mul(V a, V b) { return vmulq_f32(a, b); }
  static DDI_INLINE V madd(V a, V b, V c) { return multiply_add(c, a, b); }
  static DDI_INLINE V activate(V v, bool relu) { return ddi::activate(v, relu); }
};

}  // namespace
}  // namespace ddi
DDI_REGION_END

namespace ddi {

const WinogradMicro kWinogradNeon = {{winograd_input<Lanes, 2>, winograd_input<Lanes, 4>},
                                     {winograd_output<Lanes, 2>, winograd_output<Lanes, 4>}};

}  // namespace ddi
#endif
