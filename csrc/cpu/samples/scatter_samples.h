// Writes rows back to their places in a batch: the inverse of gather_samples. Where an index
// repeats the last row wins, for any number of threads.
#pragma once

#include "base/parallel.h"

namespace ddi {

// y[index[k]] = rows[k], and y[n] = x[n] for every other sample n (x == nullptr leaves those
// alone). Rows of row_bytes, those of y y_stride_bytes and those of x x_stride_bytes apart, rows
// dense. The caller has checked the index; `source` is room for `samples` numbers.
void scatter_samples(const void* x, int64_t x_stride_bytes, const void* rows, int64_t row_bytes,
                     const int64_t* index, int64_t count, int64_t samples,
                     const ParallelFor& parallel_for, int64_t* source, void* y,
                     int64_t y_stride_bytes);

}  // namespace ddi
