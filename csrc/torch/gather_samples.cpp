// ddi::gather_samples for the CPU: checks, allocation, registration. Any dtype; the samples of x
// may lie any distance apart, and are copied whole.
#include "../cpu/samples/gather_samples.h"

#include "samples.h"

namespace ddi {
namespace {

Tensor gather_samples_cpu(const Tensor& x, const Tensor& index) {
  constexpr const char* kOp = "gather_samples";
  const Tensor places = check_samples(kOp, x, index);
  const MemoryFormat format = format_of(x);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes[0] = places.numel();
  Tensor rows = new_tensor(sizes, x.scalar_type(), format);
  if (rows.numel() == 0) return rows;
  const Tensor dense = samples_are_dense(x, format) ? x : torch::stable::contiguous(x, format);
  gather_samples(dense.const_data_ptr(), stride_bytes(dense), sample_bytes(dense),
                 places.const_data_ptr<int64_t>(), places.numel(), copy_tasks,
                 rows.mutable_data_ptr());
  return rows;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddi, CPU, m) { m.impl("gather_samples", TORCH_BOX(&gather_samples_cpu)); }

}  // namespace ddi
