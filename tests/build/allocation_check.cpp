// Counts what the drivers ask of the heap in a call on one thread: nothing, since a caller hands
// them all the memory they use. Every workspace is exactly as large as the interface asks for.
#include <cstdio>
#include <cstring>
#include <vector>

#include "allocations.h"
#include "base/isa.h"
#include "block/gated_block.h"
#include "block/gated_block_int8.h"
#include "block/gated_dense_layer.h"
#include "conv/prepack_conv2d.h"
#include "gate/gate_plan.h"

namespace {

constexpr int64_t kSamples = 40, kSide = 9;  // more samples than a sort by insertion takes
int failed = 0;

void serial(int64_t tasks, ddi::Task body) {
  for (int64_t i = 0; i < tasks; ++i) body(i);
}

// Runs call(workspace) and complains if it allocates.
template <class Call>
void check(const char* name, int64_t bytes, const Call& call) {
  void* workspace = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
  std::memset(workspace, 0xff, static_cast<size_t>(bytes));
  const long before = allocations;
  call(workspace);
  if (allocations == before) return std::free(workspace);
  std::printf("%s allocated %ld times\n", name, allocations - before);
  ++failed;
}

// Bits that differ from sample to sample, some of them all closed.
std::vector<uint8_t> mask(int64_t groups) {
  std::vector<uint8_t> open(static_cast<size_t>(kSamples * groups));
  for (size_t i = 0; i < open.size(); ++i) open[i] = i * i % 7 < i / open.size() % 5 + 3;
  return open;
}

// A convolution with weights of 0 and gates on both sides.
template <class T>
struct Conv {
  Conv(int64_t ci, int64_t co, int64_t k, int64_t groups = 1)
      : packed(static_cast<size_t>(ddi::prepack_conv2d_numel<T>(co, ci / groups, k, k, groups))),
        in_open(mask(ci / 8)),
        out_open(mask(co / 8)) {
    args.shape = {kSamples, ci, kSide, kSide, co, k, k, 1, 1, k / 2, k / 2, 1, 1, groups};
    args.packed = packed.data();
    args.in_open = in_open.data();
    args.out_open = out_open.data();
    args.in_group_size = args.out_group_size = 8;
    args.channels_last = true;
    const int64_t stride[] = {ci * kSide * kSide, 1, kSide * ci, ci};
    std::memcpy(args.x_stride, stride, sizeof(stride));
  }

  ddi::GatedConv2d<T> args = {};
  std::vector<typename ddi::Types<T>::Cell> packed;
  std::vector<uint8_t> in_open, out_open;
};

template <class T>
std::vector<T> image(int64_t channels) {
  return std::vector<T>(static_cast<size_t>(kSamples * kSide * kSide * channels));
}

template <class T>
void check_conv(int64_t groups) {
  const auto x = image<T>(32);
  auto y = image<typename ddi::Types<T>::Out>(32);
  Conv<T> conv(32, 32, 3, groups);
  const std::vector<float> factor(32);
  if constexpr (ddi::Types<T>::kInteger) conv.args.factor = factor.data();
  conv.args.x = x.data();
  conv.args.y = y.data();
  const int64_t bytes = ddi::gated_conv2d_workspace_bytes<T>(conv.args.shape, 1);
  check(groups == 1 ? "gated_conv2d" : "depthwise_conv2d", bytes,
        [&](void* workspace) { ddi::gated_conv2d(conv.args, 1, serial, workspace); });
}

template <class T>
void check_block(bool has_shortcut) {
  const auto x = image<T>(32);
  auto y = image<T>(32);
  Conv<T> first(32, 16, 1), middle(16, 16, 3), last(16, 32, 1), shortcut(32, 32, 1);
  std::vector<typename ddi::Types<T>::Acc> pooled(kSamples * 32);
  const std::vector<uint8_t> keep = mask(1);
  last.args.out_open = nullptr;
  middle.args.in_open = first.args.out_open;
  last.args.in_open = middle.args.out_open;
  ddi::GatedBlock<T> block = {};
  block.branch[0] = first.args;
  block.branch[1] = middle.args;
  block.branch[2] = last.args;
  block.depth = 3;
  block.shortcut = shortcut.args;
  block.has_shortcut = has_shortcut;
  block.x = x.data();
  std::memcpy(block.x_stride, first.args.x_stride, sizeof(block.x_stride));
  block.keep = has_shortcut ? nullptr : keep.data();
  block.channels_last = true;
  block.y = y.data();
  block.pooled = pooled.data();
  check("gated_block", ddi::gated_block_workspace_bytes(block, 1),
        [&](void* workspace) { ddi::gated_block(block, 1, serial, workspace); });
}

void check_block_int8(bool has_shortcut) {
  const auto x = image<float>(32);
  auto y = image<float>(32);
  Conv<int8_t> first(32, 16, 1), middle(16, 16, 3), last(16, 32, 1), shortcut(32, 32, 1);
  const std::vector<float> factor(32);
  std::vector<float> pooled(kSamples * 32);
  const std::vector<uint8_t> keep = mask(1);
  for (auto* conv : {&first, &middle, &last, &shortcut}) conv->args.factor = factor.data();
  first.args.in_open = shortcut.args.in_open = nullptr;
  last.args.out_open = shortcut.args.out_open = nullptr;
  middle.args.in_open = first.args.out_open;
  last.args.in_open = middle.args.out_open;
  const ddi::GatedBlockInt8 block = {{first.args, middle.args, last.args},
                                     {1, 1, 1},
                                     3,
                                     shortcut.args,
                                     has_shortcut,
                                     x.data(),
                                     has_shortcut ? nullptr : keep.data(),
                                     y.data(),
                                     pooled.data(),
                                     nullptr};
  check("gated_block_int8", ddi::gated_block_int8_workspace_bytes(block, 1),
        [&](void* workspace) { ddi::gated_block_int8(block, 1, serial, workspace); });
}

template <class T>
void check_dense_layer() {
  const auto x = image<T>(32);
  auto y = image<T>(16);
  Conv<T> bottleneck(32, 64, 1), grow(64, 16, 3);
  const std::vector<T> scale(32), shift(32);
  std::vector<T> pooled(kSamples * 16);
  bottleneck.args.out_open = grow.args.in_open = nullptr;
  bottleneck.args.x = x.data();
  bottleneck.args.pre_scale = scale.data();
  bottleneck.args.pre_shift = shift.data();
  grow.args.y = y.data();
  ddi::GatedDenseLayer<T> layer = {bottleneck.args, grow.args, pooled.data()};
  check("gated_dense_layer", ddi::gated_dense_layer_workspace_bytes(layer, 1),
        [&](void* workspace) { ddi::gated_dense_layer(layer, 1, serial, workspace); });
}

template <class T>
void check_gate() {
  const std::vector<T> zeros(40 * 40), x = image<T>(16);
  const T* w = zeros.data();
  const ddi::GateWeights<T> weights = {16, 10, w, w, w, w, w, w, w, w, 12, 4, w, w, w, w};
  std::vector<T> h(kSamples * 10), c(kSamples * 10), h_next(kSamples * 10), c_next(kSamples * 10);
  std::vector<uint8_t> keep(kSamples), open(kSamples * 4);
  const ddi::GatePlan<T> plan = {weights,     kSamples,    kSide * kSide, true,
                                 x.data(),    h.data(),    c.data(),      0,
                                 keep.data(), open.data(), h_next.data(), c_next.data()};
  check("gate_plan", ddi::gate_plan_workspace_bytes(weights, 1),
        [&](void* workspace) { ddi::gate_plan(plan, 1, serial, workspace); });
}

template <class T>
void check_type() {
  check_conv<T>(1);
  if constexpr (!ddi::Types<T>::kInteger) {
    check_block<T>(false);
    check_block<T>(true);
  }
  if constexpr (std::is_floating_point<T>::value) {
    check_conv<T>(32);
    check_dense_layer<T>();
    check_gate<T>();
  }
}

}  // namespace

// allocation_check ISA: exits with 0 if no driver allocates.
int main(int argc, char** argv) {
  ddi::Isa isa;
  if (argc != 2 || !ddi::parse_isa(argv[1], &isa) || isa > ddi::detected_isa()) return 2;
  ddi::override_isa(isa);
  check_type<float>();
  check_type<double>();
  check_type<ddi::half>();
  check_type<ddi::bf16>();
  check_type<int8_t>();
  check_block_int8(false);
  check_block_int8(true);
  const long before = allocations;
  const std::vector<char> one(1);  // what must be seen
  const bool works = !kCountsAllocations || allocations > before;
  std::printf("ran %s: %s, %d failed\n", argv[1], works ? "counting works" : "blind", failed);
  return works && failed == 0 ? 0 : 1;
}
