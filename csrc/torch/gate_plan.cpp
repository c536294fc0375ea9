// ddi::gate_plan for the CPU: checks, allocation, registration.
#include "../cpu/gate/gate_plan.h"

#include <algorithm>
#include <tuple>

#include "common.h"

namespace ddi {
namespace {

constexpr const char* kOp = "gate_plan";
using Tensors = std::vector<Tensor>;

void check_count(const char* name, const Tensors& list, size_t full) {
  STD_TORCH_CHECK(list.size() == full || list.empty(), kOp, ": ", name, " holds ", list.size(),
                  " tensors; expected ", full, " or none");
}

// One weight: on the CPU, of x's dtype, of this shape, dense.
template <class T>
const T* weight(const char* name, Tensors& list, size_t i, const Tensor& x,
                const std::vector<int64_t>& sizes) {
  check_cpu(kOp, name, list[i]);
  check_dtype(kOp, name, list[i], x.scalar_type());
  check_shape(kOp, name, list[i], sizes);
  list[i] = as_dense(list[i], MemoryFormat::Contiguous);
  return static_cast<const T*>(list[i].const_data_ptr());
}

template <class T>
GateWeights<T> check_weights(const Tensor& x, Tensors& lstm, Tensors& layer, Tensors& channel) {
  check_count("lstm", lstm, 6);
  check_count("layer", layer, 2);
  check_count("channel", channel, 4);
  STD_TORCH_CHECK(!lstm.empty() || layer.empty(), kOp, ": layer holds ", layer.size(),
                  " tensors; expected none without lstm, whose state it reads");
  GateWeights<T> w = {};
  const int64_t channels = w.channels = x.size(1);
  if (!lstm.empty()) {
    check_dim(kOp, "lstm[0]", lstm[0], 2, "[hidden, channels]");
    STD_TORCH_CHECK(lstm[0].size(0) > 0, kOp, ": lstm[0] has shape ", shape_of(lstm[0]),
                    "; expected at least one row");
    w.hidden = lstm[0].size(0);
    w.project = weight<T>("lstm[0]", lstm, 0, x, {w.hidden, channels});
    w.project_bias = weight<T>("lstm[1]", lstm, 1, x, {w.hidden});
    w.w_ih = weight<T>("lstm[2]", lstm, 2, x, {4 * w.hidden, w.hidden});
    w.w_hh = weight<T>("lstm[3]", lstm, 3, x, {4 * w.hidden, w.hidden});
    w.b_ih = weight<T>("lstm[4]", lstm, 4, x, {4 * w.hidden});
    w.b_hh = weight<T>("lstm[5]", lstm, 5, x, {4 * w.hidden});
  }
  const int64_t hidden = w.hidden;
  if (!layer.empty()) {
    w.layer = weight<T>("layer[0]", layer, 0, x, {1, hidden});
    w.layer_bias = weight<T>("layer[1]", layer, 1, x, {1});
  }
  if (!channel.empty()) {
    check_dim(kOp, "channel[0]", channel[0], 2, "[reduced, channels + hidden]");
    check_dim(kOp, "channel[2]", channel[2], 2, "[groups, reduced]");
    w.reduced = channel[0].size(0);
    w.groups = channel[2].size(0);
    w.reduce = weight<T>("channel[0]", channel, 0, x, {w.reduced, channels + hidden});
    w.reduce_bias = weight<T>("channel[1]", channel, 1, x, {w.reduced});
    w.expand = weight<T>("channel[2]", channel, 2, x, {w.groups, w.reduced});
    w.expand_bias = weight<T>("channel[3]", channel, 3, x, {w.groups});
  }
  return w;
}

Tensor check_state(const char* name, const Tensor& t, const Tensor& x, int64_t hidden) {
  check_cpu(kOp, name, t);
  check_dtype(kOp, name, t, x.scalar_type());
  check_shape(kOp, name, t, {x.size(0), hidden});
  return as_dense(t, MemoryFormat::Contiguous);
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> run(const Tensor& x, const Tensor& h, const Tensor& c,
                                               Tensors lstm, Tensors layer, Tensors channel,
                                               double threshold) {
  const GateWeights<T> w = check_weights<T>(x, lstm, layer, channel);
  const Tensor h_in = check_state("h", h, x, w.hidden), c_in = check_state("c", c, x, w.hidden);
  const MemoryFormat format = format_of(x);
  const Tensor dense = as_dense(x, format);
  const int64_t samples = x.size(0);
  Tensor keep = new_tensor({samples}, ScalarType::Bool);
  Tensor open = new_tensor({samples, w.groups}, ScalarType::Bool);
  Tensor h_out = new_tensor({samples, w.hidden}, x.scalar_type());
  Tensor c_out = new_tensor({samples, w.hidden}, x.scalar_type());
  if (samples > 0) {
    const GatePlan<T> args = {
        w,
        samples,
        x.size(2) * x.size(3),
        format == MemoryFormat::ChannelsLast,
        static_cast<const T*>(dense.const_data_ptr()),
        static_cast<const T*>(h_in.const_data_ptr()),
        static_cast<const T*>(c_in.const_data_ptr()),
        static_cast<T>(threshold),
        static_cast<uint8_t*>(keep.mutable_data_ptr()),
        static_cast<uint8_t*>(open.mutable_data_ptr()),
        static_cast<T*>(h_out.mutable_data_ptr()),
        static_cast<T*>(c_out.mutable_data_ptr()),
    };
    const int64_t tasks = std::min<int64_t>(torch::stable::get_num_threads(), samples);
    with_workspace(kOp, gate_plan_workspace_bytes<T>(w, tasks),
                   [&](void* workspace) { gate_plan<T>(args, tasks, parallel_tasks, workspace); });
  }
  return {keep, open, h_out, c_out};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gate_plan_cpu(const Tensor& x, const Tensor& h,
                                                         const Tensor& c, const Tensors& lstm,
                                                         const Tensors& layer,
                                                         const Tensors& channel, double threshold) {
  check_cpu(kOp, "x", x);
  check_dim(kOp, "x", x, 4, "[N, C, H, W]");
  check_real(kOp, "x", x);
  STD_TORCH_CHECK(x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, kOp, ": x has shape ",
                  shape_of(x), "; every dimension but the batch must be at least 1");
  return x.scalar_type() == ScalarType::Float
             ? run<float>(x, h, c, lstm, layer, channel, threshold)
             : run<double>(x, h, c, lstm, layer, channel, threshold);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddi, CPU, m) { m.impl("gate_plan", TORCH_BOX(&gate_plan_cpu)); }

}  // namespace ddi
