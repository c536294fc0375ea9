// What is left to do for a sample of a residual block once its branch has run or has been skipped:
// a skipped one is copied, and the means of y are taken or passed on.
#pragma once

#include "micro/micro.h"

namespace ddi {

template <class T>
struct BlockResult {
  using Acc = typename Types<T>::Acc;

  int64_t pixels, channels;
  bool channels_last;
  const T* x;  // laid out as y, if there are skipped samples; may be y
  T* y;
  const Acc* x_pooled;  // [n][channels] means of x, or nullptr
  Acc* pooled;          // the same of y, or nullptr

  void finish(int64_t sample, bool kept) const;
};

}  // namespace ddi
