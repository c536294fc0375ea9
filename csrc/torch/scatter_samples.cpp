// ddi::scatter_samples and ddi::scatter_samples_ for the CPU: checks, allocation, registration. Any
// dtype; repeated places keep their last row.
#include "../cpu/samples/scatter_samples.h"

#include "samples.h"

namespace ddi {
namespace {

// Checks, and returns the index contiguous.
Tensor check_rows(const char* op, const Tensor& x, const Tensor& rows, const Tensor& index) {
  Tensor places = check_samples(op, x, index);
  check_cpu(op, "rows", rows);
  check_dtype(op, "rows", rows, x.scalar_type());
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes[0] = places.numel();
  check_shape(op, "rows", rows, sizes);
  return places;
}

void scatter(const Tensor* x, const Tensor& rows, const Tensor& places, Tensor& y) {
  const int64_t bytes = y.size(0) * static_cast<int64_t>(sizeof(int64_t));
  with_workspace("scatter_samples", bytes, [&](void* source) {
    scatter_samples(x == nullptr ? nullptr : x->const_data_ptr(),
                    x == nullptr ? 0 : stride_bytes(*x), rows.const_data_ptr(), sample_bytes(y),
                    places.const_data_ptr<int64_t>(), places.numel(), y.size(0), copy_tasks,
                    static_cast<int64_t*>(source), y.mutable_data_ptr(), stride_bytes(y));
  });
}

Tensor scatter_samples_cpu(const Tensor& x, const Tensor& rows, const Tensor& index) {
  const Tensor places = check_rows("scatter_samples", x, rows, index);
  const MemoryFormat format = format_of(x);
  Tensor y = new_tensor(x.sizes(), x.scalar_type(), format);
  if (y.numel() == 0) return y;
  const Tensor dense = samples_are_dense(x, format) ? x : torch::stable::contiguous(x, format);
  scatter(&dense, as_dense(rows, format), places, y);
  return y;
}

// Whether two tensors may share memory, judged by the bytes that each spans.
bool may_overlap(const Tensor& a, const Tensor& b) {
  const auto span = [](const Tensor& t) {
    const char* first = static_cast<const char*>(t.const_data_ptr());
    int64_t last = 0;
    for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
    return std::make_pair(first, first + (last + 1) * static_cast<int64_t>(t.element_size()));
  };
  const auto p = span(a), q = span(b);
  return p.first < q.second && q.first < p.second;
}

void scatter_samples_cpu_(Tensor x, const Tensor& rows, const Tensor& index) {
  constexpr const char* kOp = "scatter_samples_";
  const Tensor places = check_rows(kOp, x, rows, index);
  if (rows.numel() == 0) return;
  for (int64_t d = 0; d < x.dim(); ++d) {
    STD_TORCH_CHECK(x.size(d) == 1 || x.stride(d) != 0, kOp,
                    ": several elements of x share one memory location (an expanded tensor); "
                    "clone() it before writing to it");
  }
  const Tensor source = may_overlap(x, rows) ? torch::stable::clone(rows) : rows;
  const MemoryFormat format = x.dim() == 4 && dense_in_order(x, {1, 3, 2}) &&
                                      !samples_are_dense(x, MemoryFormat::Contiguous)
                                  ? MemoryFormat::ChannelsLast
                                  : MemoryFormat::Contiguous;
  if (samples_are_dense(x, format)) {
    scatter(nullptr, as_dense(source, format), places, x);
    return;
  }
  const int64_t* at = places.const_data_ptr<int64_t>();
  for (int64_t k = 0; k < places.numel(); ++k) {
    Tensor sample = torch::stable::select(x, 0, at[k]);
    torch::stable::copy_(sample, torch::stable::select(source, 0, k));
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddi, CPU, m) {
  m.impl("scatter_samples", TORCH_BOX(&scatter_samples_cpu));
  m.impl("scatter_samples_", TORCH_BOX(&scatter_samples_cpu_));
}

}  // namespace ddi
