// The border between torch and the driver of residual blocks.
#include "block_parts.h"

#include <string>
#include <vector>

namespace ddi {

void check_image(const char* op, const char* name, const Tensor& x, bool halves) {
  check_cpu(op, name, x);
  check_dim(op, name, x, 4, "[N, C, H, W]");
  if (!halves || !is_half(x.scalar_type())) check_real(op, name, x);
  check_image_sizes(op, name, x);
}

void check_conv(const char* op, const Tensor& x, BlockConv& conv, int64_t ci, int64_t h, int64_t w,
                int64_t kernel, int64_t stride) {
  const auto name = [&](const char* part) { return conv.prefix + part + conv.number; };
  const std::string weight = name("weight");
  check_cpu(op, weight.c_str(), conv.weight);
  check_dtype(op, weight.c_str(), conv.weight, x.scalar_type());
  check_dim(op, weight.c_str(), conv.weight, 4, "[Co, Ci, kh, kw]");
  const int64_t co = conv.weight.size(0), pad = kernel / 2;
  check_shape(op, weight.c_str(), conv.weight, {co, ci, kernel, kernel});
  STD_TORCH_CHECK(co >= 1 && co <= kMaxDimension, op, ": ", weight, " has shape ",
                  shape_of(conv.weight), "; expected at least one output channel");
  STD_TORCH_CHECK(conv.group_size >= 1, op, ": group_size", conv.gate_number, " is ",
                  conv.group_size, "; expected at least 1");
  STD_TORCH_CHECK(stride >= 1, op, ": stride is ", stride, "; expected at least 1");
  conv.shape = {x.size(0), ci, h, w, co, kernel, kernel, stride, stride, pad, pad, 1, 1};
  const ScalarType dtype = x.scalar_type();
  conv.bias = widened(check_dense(op, name("bias").c_str(), conv.bias, dtype, {co}));
  conv.packed = check_packed(op, name("packed").c_str(), conv.packed, dtype, conv.shape);
  if (!conv.packed.has_value()) conv.packed = prepack_conv2d_cpu(conv.weight, 1);
  const std::string mask = "mask" + conv.gate_number;
  const auto gates = gates_shape(x.size(0), co, conv.group_size);
  conv.mask = check_dense(op, mask.c_str(), conv.mask, ScalarType::Bool, gates);
  conv.scale = widened(check_dense(op, (mask + "_scale").c_str(), conv.scale, dtype, gates));
}

namespace {

void check_parts(BlockParts& p, int64_t co) {
  const int64_t n = p.x.size(0), ci = p.x.size(1);
  if (!p.shortcut_weight.has_value()) {
    STD_TORCH_CHECK(p.stride == 1 && ci == co, p.op,
                    ": shortcut_weight is None, but a block with stride ", p.stride, " from ", ci,
                    " to ", co,
                    " channels cannot add x itself; pass the weight of a 1x1 convolution");
    STD_TORCH_CHECK(!p.shortcut_bias.has_value() && !p.shortcut_packed.has_value(), p.op,
                    ": shortcut_bias and shortcut_packed must be None without shortcut_weight");
  }
  STD_TORCH_CHECK(!p.keep.has_value() || !p.shortcut_weight.has_value(), p.op,
                  ": keep must be None with a shortcut convolution: a skipped sample is x itself");
  STD_TORCH_CHECK(p.pool || !p.x_pooled.has_value(), p.op, ": x_pooled must be None without pool");
  const ScalarType dtype = p.x.scalar_type();
  p.keep = check_dense(p.op, "keep", p.keep, ScalarType::Bool, {n});
  p.keep_scale = widened(check_dense(p.op, "keep_scale", p.keep_scale, dtype, {n}));
  p.x_pooled = check_dense(p.op, "x_pooled", p.x_pooled, sum_dtype(dtype), {n, ci});
}

template <class T>
void run(const BlockParts& p, const std::vector<BlockConv>& branch, const BlockConv* shortcut,
         MemoryFormat format, Tensor& y, Tensor& pooled) {
  using Acc = typename Types<T>::Acc;
  GatedBlock<T> block = {};
  block.depth = static_cast<int>(branch.size());
  for (int i = 0; i < block.depth; ++i) {
    block.branch[i] = conv_of<T>(branch[i], i == 0 ? nullptr : &branch[i - 1]);
  }
  block.has_shortcut = shortcut != nullptr;
  if (shortcut != nullptr) block.shortcut = conv_of<T>(*shortcut, nullptr);
  block.x = static_cast<const T*>(p.x.const_data_ptr());
  for (int64_t d = 0; d < 4; ++d) block.x_stride[d] = p.x.stride(d);
  // A dimension of one element may have any stride; the driver looks for dense ones.
  if (format == MemoryFormat::ChannelsLast && p.x.size(1) == 1) block.x_stride[1] = 1;
  block.keep = data<uint8_t>(p.keep);
  block.keep_scale = data<Acc>(p.keep_scale);
  block.channels_last = format == MemoryFormat::ChannelsLast;
  block.y = static_cast<T*>(y.mutable_data_ptr());
  block.pooled = p.pool ? static_cast<Acc*>(pooled.mutable_data_ptr()) : nullptr;
  block.x_pooled = data<Acc>(p.x_pooled);
  const int64_t threads = torch::stable::get_num_threads();
  with_workspace(p.op, gated_block_workspace_bytes(block, threads),
                 [&](void* workspace) { gated_block(block, threads, parallel_tasks, workspace); });
}

}  // namespace

std::tuple<Tensor, Tensor> run_block(BlockParts p, std::vector<BlockConv> branch) {
  check_image(p.op, "x", p.x, true);
  int64_t ci = p.x.size(1), h = p.x.size(2), w = p.x.size(3);
  for (BlockConv& conv : branch) {
    check_conv(p.op, p.x, conv, ci, h, w, conv.shape.kh, conv.shape.stride_h);
    ci = conv.shape.co;
    h = conv.shape.out_h();
    w = conv.shape.out_w();
  }
  check_parts(p, ci);
  BlockConv shortcut;
  if (p.shortcut_weight.has_value()) {
    shortcut = {"shortcut_",       "", "", *p.shortcut_weight, p.shortcut_bias,
                p.shortcut_packed, {}, {}};
    check_conv(p.op, p.x, shortcut, p.x.size(1), p.x.size(2), p.x.size(3), 1, p.stride);
    check_shape(p.op, "shortcut_weight", shortcut.weight, {ci, p.x.size(1), 1, 1});
  }
  const MemoryFormat format = format_of(p.x);
  const bool has_shortcut = p.shortcut_weight.has_value();
  if (!has_shortcut) p.x = as_dense(p.x, format);
  const int64_t n = p.x.size(0);
  Tensor y = new_tensor({n, ci, h, w}, p.x.scalar_type(), format);
  Tensor pooled = new_tensor({n, p.pool ? ci : 0}, sum_dtype(p.x.scalar_type()));
  if (n == 0) return {y, pooled};
  const BlockConv* around = has_shortcut ? &shortcut : nullptr;
  switch (p.x.scalar_type()) {
    case ScalarType::Half:
      run<half>(p, branch, around, format, y, pooled);
      break;
    case ScalarType::BFloat16:
      run<bf16>(p, branch, around, format, y, pooled);
      break;
    case ScalarType::Float:
      run<float>(p, branch, around, format, y, pooled);
      break;
    default:
      run<double>(p, branch, around, format, y, pooled);
  }
  return {y, pooled};
}

}  // namespace ddi
