// ddi::scatter_samples and ddi::scatter_samples_ for CUDA: x[index] = rows, into a copy of x or
// into x itself; a copy of whole samples (copy_rows.cuh).
#include "copy_rows.cuh"

namespace ddi {
namespace {

// Checks, and returns the index contiguous.
Tensor check_rows(const char* op, const Tensor& x, const Tensor& rows, const Tensor& index) {
  const Tensor places = check_samples(op, x, index);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes[0] = places.numel();
  check_like(op, "rows", rows, x, x.scalar_type(), sizes);
  STD_TORCH_CHECK(places.numel() == 0 || x.size(0) > 0, op,
                  ": index names samples of an empty batch");
  return places;
}

// y's samples are dense in this format.
void scatter(const char* op, const Tensor& y, const Tensor& rows, const Tensor& places,
             MemoryFormat format) {
  if (rows.numel() == 0) return;
  const Tensor dense = dense_samples(rows, format);
  const int64_t bytes = rows.numel() / places.numel() * static_cast<int64_t>(rows.element_size());
  copy_rows<Copy::kScatter>(op, rows_of(dense), rows_of(y), bytes, places.const_data_ptr<int64_t>(),
                            current_stream(op, y.get_device_index()));
}

Tensor scatter_samples_cuda(const Tensor& x, const Tensor& rows, const Tensor& index) {
  constexpr const char* kOp = "scatter_samples";
  const Tensor places = check_rows(kOp, x, rows, index);
  const MemoryFormat format = format_of(x);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = new_tensor(x, x.sizes(), format);
  torch::stable::copy_(y, x);
  scatter(kOp, y, rows, places, format);
  return y;
}

void scatter_samples_cuda_(Tensor x, const Tensor& rows, const Tensor& index) {
  constexpr const char* kOp = "scatter_samples_";
  const Tensor places = check_rows(kOp, x, rows, index);
  for (int64_t d = 0; d < x.dim(); ++d) {
    STD_TORCH_CHECK(x.size(d) <= 1 || x.stride(d) != 0, kOp,
                    ": several elements of x share one memory location (an expanded tensor); "
                    "clone() it before writing to it");
  }
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const bool last = x.dim() == 4 && dense_in_order(x, {1, 3, 2}) &&
                    !samples_are_dense(x, MemoryFormat::Contiguous);
  const MemoryFormat format = last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  if (samples_are_dense(x, format)) {
    scatter(kOp, x, rows, places, format);
    return;
  }
  const Tensor dense = torch::stable::contiguous(x);
  scatter(kOp, dense, rows, places, format);
  torch::stable::copy_(x, dense);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddi, CUDA, m) {
  m.impl("scatter_samples", TORCH_BOX(&scatter_samples_cuda));
  m.impl("scatter_samples_", TORCH_BOX(&scatter_samples_cuda_));
}

}  // namespace ddi
