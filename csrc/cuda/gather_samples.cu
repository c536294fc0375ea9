// ddi::gather_samples for CUDA: rows = x[index], a copy of whole samples (copy_rows.cuh).
#include "copy_rows.cuh"

namespace ddi {
namespace {

Tensor gather_samples_cuda(const Tensor& x, const Tensor& index) {
  constexpr const char* kOp = "gather_samples";
  const Tensor places = check_samples(kOp, x, index);
  const MemoryFormat format = format_of(x);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes[0] = places.numel();
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor rows = new_tensor(x, sizes, format);
  if (rows.numel() == 0) return rows;
  STD_TORCH_CHECK(x.size(0) > 0, kOp, ": index names samples of an empty batch");
  const Tensor dense = dense_samples(x, format);
  const int64_t bytes = rows.numel() / sizes[0] * static_cast<int64_t>(x.element_size());
  copy_rows<Copy::kGather>(kOp, rows_of(dense), rows_of(rows), bytes,
                           places.const_data_ptr<int64_t>(),
                           current_stream(kOp, x.get_device_index()));
  return rows;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddi, CUDA, m) {
  m.impl("gather_samples", TORCH_BOX(&gather_samples_cuda));
}

}  // namespace ddi
