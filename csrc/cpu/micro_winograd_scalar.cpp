// Winograd transforms in plain C++, for machines without a table of their own.
#include "isa_region.h"
#include "micro.h"
#include "micro_winograd.h"
#include "winograd.h"

// Without a region around it: what it holds is compiled for the baseline.
#include "micro_winograd_tiles.h"

namespace ddi {
namespace {

struct Lanes {
  using V = float;
  static constexpr int kCount = 1;
  static V load(const float* src, int64_t) { return *src; }
  static void store(float* dst, int64_t, V v) { *dst = v; }
  static V set(float a) { return a; }
  static V add(V a, V b) { return a + b; }
  static V sub(V a, V b) { return a - b; }
  static V mul(V a, V b) { return a * b; }
  static V madd(V a, V b, V c) { return a * b + c; }
  static V activate(V v, bool relu) { return relu && v < 0 ? 0 : v; }
};

}  // namespace

const WinogradMicro kWinogradScalar = {{winograd_input<Lanes, 2>, winograd_input<Lanes, 4>},
                                       {winograd_output<Lanes, 2>, winograd_output<Lanes, 4>}};

}  // namespace ddi
