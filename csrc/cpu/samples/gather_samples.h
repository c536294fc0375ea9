// Copies chosen samples of a batch next to each other: what a skipped layer leaves to compute.
#pragma once

#include "base/parallel.h"

namespace ddi {

// rows[k] = x[index[k]]: rows of row_bytes, those of x x_stride_bytes apart, rows dense. The caller
// has checked the index.
void gather_samples(const void* x, int64_t x_stride_bytes, int64_t row_bytes, const int64_t* index,
                    int64_t count, const ParallelFor& parallel_for, void* rows);

}  // namespace ddi
