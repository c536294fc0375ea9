// ddi::resident_stage for CUDA: checks, allocation, one launch (resident_stage.cuh).
#include "resident_stage.cuh"

#include <algorithm>
#include <tuple>
#include <utility>

#include "common.cuh"

namespace ddi {
namespace {

constexpr const char* kOp = "resident_stage";

// The dense form of a float tensor, kept alive in `kept`.
const float* floats(const char* name, const Tensor& t, const Tensor& x,
                    const std::vector<int64_t>& sizes, std::vector<Tensor>& kept) {
  check_like(kOp, name, t, x, ScalarType::Float, sizes);
  kept.push_back(as_dense(t, MemoryFormat::Contiguous));
  return static_cast<const float*>(kept.back().const_data_ptr());
}

template <class S, bool ENTRY>
void launch(const StageData& d, const StageGates& entry, const StageGates& g, int device,
            cudaStream_t stream) {
  constexpr int kShared = stage_shared_bytes<S, ENTRY>();
  const auto kernel = resident_stage_kernel<S, ENTRY>;
  int multiprocessors = 0, fitting = 0;
  STD_TORCH_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       kShared) == cudaSuccess &&
                      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount,
                                             device) == cudaSuccess &&
                      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fitting, kernel, kStageThreads,
                                                                    kShared) == cudaSuccess,
                  kOp, ": this GPU does not give a block ", kShared, " bytes of shared memory");
  const int resident = multiprocessors * std::max(fitting, 1);
  kernel<<<std::min(d.samples, resident), kStageThreads, kShared, stream>>>(d, entry, g);
  check_launch(kOp);
}

// All tensors of a gate, or none.
std::vector<const float*> take(const char* name, const std::vector<Tensor>& from, const Tensor& x,
                               const std::vector<std::vector<int64_t>>& sizes,
                               std::vector<Tensor>& kept) {
  std::vector<const float*> found(sizes.size(), nullptr);
  if (from.empty()) return found;
  STD_TORCH_CHECK(from.size() == sizes.size(), kOp, ": ", name, " has ", from.size(),
                  " tensors; expected ", sizes.size(), " or none");
  for (size_t i = 0; i < sizes.size(); ++i) found[i] = floats(name, from[i], x, sizes[i], kept);
  return found;
}

struct Gates {
  std::vector<Tensor> lstm, layer, channel, entry;
};

// Those of the blocks of one width, and those of the entry block, which reads half as many
// channels.
void set_gates(const Gates& t, const Tensor& x, int64_t C, int64_t blocks, StageGates& entry,
               StageGates& g, std::vector<Tensor>& kept) {
  const int64_t H = g.hidden, R = g.reduced, G = g.groups, half = C / 2;
  auto w = take("lstm", t.lstm, x, {{H, C}, {H}, {4 * H, H}, {4 * H, H}, {4 * H}, {4 * H}}, kept);
  g.project = w[0], g.project_bias = w[1];
  g.w_ih = w[2], g.w_hh = w[3], g.b_ih = w[4], g.b_hh = w[5];
  entry = g;
  w = take("layer", t.layer, x, {{blocks, H}, {blocks}}, kept);
  g.layer = w[0], g.layer_bias = w[1];
  w = take("channel", t.channel, x, {{blocks, R, C + H}, {blocks, R}, {blocks, G, R}, {blocks, G}},
           kept);
  g.reduce = w[0], g.reduce_bias = w[1], g.expand = w[2], g.expand_bias = w[3];
  std::vector<std::vector<int64_t>> sizes;
  if (!t.lstm.empty()) sizes = {{H, half}, {H}};
  if (!t.channel.empty()) sizes.insert(sizes.end(), {{R, half + H}, {R}, {G, R}, {G}});
  w = take("entry_gates", t.entry, x, sizes, kept);
  w.insert(t.lstm.empty() ? w.begin() : w.end(), 6 - w.size(), nullptr);
  entry.project = w[0], entry.project_bias = w[1];
  entry.reduce = w[2], entry.reduce_bias = w[3], entry.expand = w[4], entry.expand_bias = w[5];
}

const uint16_t* words(const char* name, const Tensor& t, const Tensor& x,
                      const std::vector<int64_t>& sizes, std::vector<Tensor>& kept) {
  check_like(kOp, name, t, x, ScalarType::BFloat16, sizes);
  kept.push_back(as_aligned(t, MemoryFormat::Contiguous));
  return static_cast<const uint16_t*>(kept.back().const_data_ptr());
}

// The width of the blocks and the side of their images, checked; an entry block's x has half the
// width and twice the side.
std::pair<int64_t, int64_t> check_image(const Tensor& x, const Tensor& weights, bool entered) {
  check_cuda(kOp, "x", x, x);
  check_dim(kOp, "x", x, 4, "[N, C, H, W]");
  check_dtype(kOp, "x", x, ScalarType::BFloat16);
  check_dim(kOp, "weights", weights, 5, "[blocks, 2, 9, C, C]");
  const int64_t C = x.size(1) * (entered ? 2 : 1), side = x.size(2) / (entered ? 2 : 1);
  const bool known =
      (C == 16 && side == 32 && !entered) || (C == 32 && side == 16) || (C == 64 && side == 8);
  STD_TORCH_CHECK(known && x.size(2) == x.size(3) && x.size(2) == side * (entered ? 2 : 1), kOp,
                  ": x has shape ", shape_of(x),
                  "; expected 16 channels of 32 x 32, 32 of 16 x 16 or 64 of 8 x 8, before an "
                  "entry block 16 of 32 x 32 or 32 of 16 x 16");
  return {C, side};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> resident_stage_cuda(
    const Tensor& x, const Tensor& h, const Tensor& c, const Tensor& weights, const Tensor& biases,
    std::vector<Tensor> lstm, std::vector<Tensor> layer, std::vector<Tensor> channel,
    int64_t group_size, double threshold, std::vector<Tensor> entry,
    std::vector<Tensor> entry_gates) {
  const bool entered = !entry.empty();
  STD_TORCH_CHECK(entry.empty() || entry.size() == 3, kOp, ": entry has ", entry.size(),
                  " tensors; expected 3 or none");
  STD_TORCH_CHECK(group_size >= 1, kOp, ": group_size is ", group_size, "; expected at least 1");
  const auto [C, side] = check_image(x, weights, entered);
  const int64_t samples = x.size(0), blocks = weights.size(0), all = blocks + entered;
  const int64_t hidden = lstm.empty() ? 0 : lstm[0].size(0);
  const int64_t reduced = channel.empty() ? 0 : channel[0].size(1);
  STD_TORCH_CHECK(hidden <= kMaxHidden && reduced <= kMaxReduced, kOp, ": gates are ", hidden,
                  " and ", reduced, " wide; expected at most ", kMaxHidden, " and ", kMaxReduced);
  STD_TORCH_CHECK(samples <= INT32_MAX && blocks <= INT32_MAX / 18 / 64, kOp, ": ", samples,
                  " samples or ", blocks, " blocks are too many");
  StageGates first{}, g{};
  g.hidden = static_cast<int>(hidden);
  g.reduced = static_cast<int>(reduced);
  g.group_size = static_cast<int>(group_size < C ? group_size : C);
  g.groups = channel.empty() ? 0 : static_cast<int>((C - 1) / group_size + 1);
  g.threshold = static_cast<float>(threshold);
  std::vector<Tensor> kept;
  set_gates({lstm, layer, channel, entry_gates}, x, C, blocks, first, g, kept);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const MemoryFormat last = MemoryFormat::ChannelsLast;
  Tensor y = new_tensor(x, {samples, C, side, side}, last);
  Tensor keep = new_tensor(x, {samples, all}, ScalarType::Bool);
  Tensor open = new_tensor(x, {samples, all, g.groups}, ScalarType::Bool);
  Tensor h_next = new_tensor(x, {samples, hidden}, ScalarType::Float);
  Tensor c_next = new_tensor(x, {samples, hidden}, ScalarType::Float);
  if (samples == 0) return {y, keep, open, h_next, c_next};
  Tensor queue = torch::stable::new_zeros(x, {1}, ScalarType::Int);
  const Tensor dense = as_aligned(x, last);
  StageData d{};
  d.x = static_cast<const uint16_t*>(dense.const_data_ptr());
  d.weights = words("weights", weights, x, {blocks, 2, 9, C, C}, kept);
  d.biases = floats("biases", biases, x, {blocks, 2, C}, kept);
  if (entered) {
    d.entry1 = words("entry[0]", entry[0], x, {10, C, C / 2}, kept);
    d.entry2 = words("entry[1]", entry[1], x, {9, C, C}, kept);
    d.entry_biases = floats("entry[2]", entry[2], x, {2, C}, kept);
  }
  d.h = floats("h", h, x, {samples, hidden}, kept);
  d.c = floats("c", c, x, {samples, hidden}, kept);
  d.y = static_cast<uint16_t*>(y.mutable_data_ptr());
  d.h_next = static_cast<float*>(h_next.mutable_data_ptr());
  d.c_next = static_cast<float*>(c_next.mutable_data_ptr());
  d.keep = static_cast<uint8_t*>(keep.mutable_data_ptr());
  d.open = static_cast<uint8_t*>(open.mutable_data_ptr());
  d.queue = static_cast<int*>(queue.mutable_data_ptr());
  d.samples = static_cast<int>(samples);
  d.blocks = static_cast<int>(blocks);
  const auto run = C == 16   ? launch<Stage16, false>
                   : C == 32 ? entered ? launch<Stage32, true> : launch<Stage32, false>
                   : entered ? launch<Stage64, true>
                             : launch<Stage64, false>;
  run(d, first, g, x.get_device_index(), current_stream(kOp, x.get_device_index()));
  return {y, keep, open, h_next, c_next};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddi, CUDA, m) {
  m.impl("resident_stage", TORCH_BOX(&resident_stage_cuda));
}

}  // namespace ddi
