// ddi::resident_stage for CUDA: checks, allocation, one launch (resident_stage.cuh).
#include "resident_stage.cuh"

#include <tuple>

#include "common.cuh"

namespace ddi {
namespace {

constexpr const char* kOp = "resident_stage";

void check(const char* name, const Tensor& t, const Tensor& x, ScalarType dtype,
           const std::vector<int64_t>& sizes) {
  check_cuda(kOp, name, t, x);
  check_dtype(kOp, name, t, dtype);
  check_shape(kOp, name, t, sizes);
}

// The dense form of a float tensor, kept alive in `kept`.
const float* floats(const char* name, const Tensor& t, const Tensor& x,
                    const std::vector<int64_t>& sizes, std::vector<Tensor>& kept) {
  check(name, t, x, ScalarType::Float, sizes);
  kept.push_back(as_dense(t, MemoryFormat::Contiguous));
  return static_cast<const float*>(kept.back().const_data_ptr());
}

template <class S>
void launch(const StageData& d, const StageGates& g, int device, cudaStream_t stream) {
  constexpr int kShared = stage_shared_bytes<S>();
  int multiprocessors = 0;
  STD_TORCH_CHECK(
      cudaFuncSetAttribute(resident_stage_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           kShared) == cudaSuccess &&
          cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) ==
              cudaSuccess,
      kOp, ": this GPU does not give a block ", kShared, " bytes of shared memory");
  const int blocks = d.samples < multiprocessors ? d.samples : multiprocessors;
  resident_stage_kernel<S><<<blocks, kStageThreads, kShared, stream>>>(d, g);
  check_launch(kOp);
}

std::vector<const float*> gate_weights(const std::vector<Tensor>& lstm,
                                       const std::vector<Tensor>& layer,
                                       const std::vector<Tensor>& channel, const Tensor& x,
                                       const StageGates& g, int64_t blocks,
                                       std::vector<Tensor>& kept) {
  const int64_t C = x.size(1), H = g.hidden, R = g.reduced, G = g.groups;
  std::vector<const float*> found(12, nullptr);
  const auto take = [&](const std::vector<Tensor>& from, int first,
                        const std::vector<std::vector<int64_t>>& sizes) {
    if (from.empty()) return;
    STD_TORCH_CHECK(from.size() == sizes.size(), kOp, ": a gate has ", from.size(),
                    " tensors; expected ", sizes.size(), " or none");
    for (size_t i = 0; i < sizes.size(); ++i)
      found[first + i] = floats("a gate's tensor", from[i], x, sizes[i], kept);
  };
  take(lstm, 0, {{H, C}, {H}, {4 * H, H}, {4 * H, H}, {4 * H}, {4 * H}});
  take(layer, 6, {{blocks, H}, {blocks}});
  take(channel, 8, {{blocks, R, C + H}, {blocks, R}, {blocks, G, R}, {blocks, G}});
  return found;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> resident_stage_cuda(
    const Tensor& x, const Tensor& h, const Tensor& c, const Tensor& weights, const Tensor& biases,
    std::vector<Tensor> lstm, std::vector<Tensor> layer, std::vector<Tensor> channel,
    int64_t group_size, double threshold) {
  STD_TORCH_CHECK(x.is_cuda() && x.dim() == 4 && x.scalar_type() == ScalarType::BFloat16, kOp,
                  ": x has ", x.dim(), " dimensions; expected bfloat16[N, C, H, W] on a GPU");
  STD_TORCH_CHECK(weights.dim() == 5, kOp, ": weights has ", weights.dim(),
                  " dimensions; expected [blocks, 2, 9, C, C]");
  STD_TORCH_CHECK(group_size >= 1, kOp, ": group_size is ", group_size, "; expected at least 1");
  const int64_t samples = x.size(0), C = x.size(1), side = x.size(2), blocks = weights.size(0);
  const bool shaped = side == x.size(3) && ((C == 16 && side == 32) || (C == 32 && side == 16) ||
                                            (C == 64 && side == 8));
  STD_TORCH_CHECK(shaped, kOp, ": x has ", C, " channels of ", side, " x ", x.size(3),
                  "; expected 16 of 32 x 32, 32 of 16 x 16 or 64 of 8 x 8");
  const int64_t hidden = lstm.empty() ? 0 : lstm[0].size(0);
  const int64_t reduced = channel.empty() ? 0 : channel[0].size(1);
  STD_TORCH_CHECK(hidden <= kMaxHidden && reduced <= kMaxReduced, kOp, ": gates are ", hidden,
                  " and ", reduced, " wide; expected at most ", kMaxHidden, " and ", kMaxReduced);
  STD_TORCH_CHECK(samples <= INT32_MAX && blocks <= INT32_MAX / 18 / 64, kOp, ": ", samples,
                  " samples or ", blocks, " blocks are too many");
  StageGates g{};
  g.hidden = static_cast<int>(hidden);
  g.reduced = static_cast<int>(reduced);
  g.group_size = static_cast<int>(group_size < C ? group_size : C);
  g.groups = channel.empty() ? 0 : static_cast<int>((C - 1) / group_size + 1);
  g.threshold = static_cast<float>(threshold);
  check("weights", weights, x, ScalarType::BFloat16, {blocks, 2, 9, C, C});
  std::vector<Tensor> kept;
  const auto w = gate_weights(lstm, layer, channel, x, g, blocks, kept);
  g.project = w[0], g.project_bias = w[1], g.w_ih = w[2], g.w_hh = w[3], g.b_ih = w[4];
  g.b_hh = w[5], g.layer = w[6], g.layer_bias = w[7], g.reduce = w[8], g.reduce_bias = w[9];
  g.expand = w[10], g.expand_bias = w[11];
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const MemoryFormat last = MemoryFormat::ChannelsLast;
  Tensor y = new_tensor(x, x.sizes(), last);
  Tensor keep = new_tensor(x, {samples, blocks}, ScalarType::Bool);
  Tensor open = new_tensor(x, {samples, blocks, g.groups}, ScalarType::Bool);
  Tensor h_next = new_tensor(x, {samples, hidden}, ScalarType::Float);
  Tensor c_next = new_tensor(x, {samples, hidden}, ScalarType::Float);
  if (samples == 0) return {y, keep, open, h_next, c_next};
  Tensor queue = torch::stable::new_zeros(x, {1}, ScalarType::Int);
  const Tensor dense = as_dense(x, last);
  const Tensor packed = as_dense(weights, MemoryFormat::Contiguous);
  StageData d{};
  d.x = static_cast<const uint16_t*>(dense.const_data_ptr());
  d.weights = static_cast<const uint16_t*>(packed.const_data_ptr());
  d.biases = floats("biases", biases, x, {blocks, 2, C}, kept);
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
  const auto run = C == 16 ? launch<Stage16> : C == 32 ? launch<Stage32> : launch<Stage64>;
  run(d, g, x.get_device_index(), current_stream(kOp, x.get_device_index()));
  return {y, keep, open, h_next, c_next};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddi, CUDA, m) {
  m.impl("resident_stage", TORCH_BOX(&resident_stage_cuda));
}

}  // namespace ddi
