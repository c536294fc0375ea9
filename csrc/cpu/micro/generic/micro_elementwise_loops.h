// The loops of micro_elementwise.h for all instruction sets, for the Lanes of micro_exp.h and
//   max(v, so_far)  NaN if either is
// Included inside target regions, after all others; see isa_region.h.
#pragma once

namespace ddi {
namespace {

template <class L, Activation kAct>
DDI_INLINE typename L::V act(typename L::V v) {
  if constexpr (kAct == Activation::kRelu) {
    v = L::activate(v, true);
  } else if constexpr (kAct == Activation::kRelu6) {
    v = L::clamp(v, 0, 6);
  } else if constexpr (kAct == Activation::kHardswish) {
    v = L::mul(v, L::mul(L::clamp(L::add(v, L::set(3)), 0, 6), L::set(1.0f / 6)));
  } else if constexpr (kAct == Activation::kSilu) {
    // What is far below is as good as 0, where sigmoid has no smaller values to multiply it by.
    v = L::clamp(v, -87, __builtin_inff());
    v = L::mul(v, sigmoid<L>(v));
  } else if constexpr (kAct == Activation::kSigmoid) {
    v = sigmoid<L>(v);
  }
  return v;
}

template <class L, class T, Activation kAct>
void activate_row(const ActivationRow<T>& row) {
  using V = typename L::V;
  const ActivationRow<T> a = row;  // which no store can change
  for (int64_t p = 0; p < a.pixels; ++p) {
    const T *x = a.x + p * a.x_stride, *add = a.add + (a.add == nullptr ? 0 : p * a.add_stride);
    T* y = a.y + p * a.y_stride;
    for (int64_t c = 0; c < a.channels; c += L::kCount) {
      const int64_t n = a.channels - c;
      V v = L::load(x + c, n);
      if (a.scale != nullptr) v = L::mul(v, L::load(a.scale + c, n));
      if (a.shift != nullptr) v = L::add(v, L::load(a.shift + c, n));
      if (a.add != nullptr) v = L::add(v, L::load(add + c, n));
      L::store(y + c, n, act<L, kAct>(v));
    }
  }
}

struct MaxOf {
  static constexpr float kStart = -__builtin_inff();
  template <class L>
  static DDI_INLINE typename L::V join(typename L::V v, typename L::V so_far) {
    return L::max(v, so_far);
  }
  template <class L>
  static DDI_INLINE typename L::V finish(typename L::V v, float) {
    return v;
  }
};

struct MeanOf {
  static constexpr float kStart = 0;
  template <class L>
  static DDI_INLINE typename L::V join(typename L::V v, typename L::V so_far) {
    return L::add(so_far, v);
  }
  template <class L>
  static DDI_INLINE typename L::V finish(typename L::V v, float divisor) {
    return L::div(v, L::set(divisor));
  }
};

// N registers of channels of a window, which hide each other's latency.
template <class L, class T, class Of, int N>
DDI_INLINE void pool_window(const PoolRow<T>& a, const T* window, int64_t left, T* y) {
  typename L::V v[N];
  DDI_UNROLL
  for (int i = 0; i < N; ++i) v[i] = L::set(Of::kStart);
  for (int64_t ky = 0; ky < a.rows; ++ky) {
    const T* x = window + ky * a.row_stride;
    for (int64_t kx = 0; kx < a.columns; ++kx, x += a.pixel_stride) {
      DDI_UNROLL
      for (int i = 0; i < N; ++i) {
        v[i] = Of::template join<L>(L::load(x + i * L::kCount, left - i * L::kCount), v[i]);
      }
    }
  }
  DDI_UNROLL
  for (int i = 0; i < N; ++i) {
    L::store(y + i * L::kCount, left - i * L::kCount, Of::template finish<L>(v[i], a.divisor));
  }
}

template <class L, class T, class Of>
void pool_row(const PoolRow<T>& row) {
  constexpr int64_t kFour = 4 * L::kCount;
  const PoolRow<T> a = row;
  for (int64_t i = 0; i < a.outputs; ++i) {
    const T* window = a.x + i * a.window_stride;
    T* y = a.y + i * a.y_stride;
    int64_t c = 0;
    for (; c + kFour <= a.channels; c += kFour) {
      pool_window<L, T, Of, 4>(a, window + c, kFour, y + c);
    }
    for (; c < a.channels; c += L::kCount) {
      pool_window<L, T, Of, 1>(a, window + c, a.channels - c, y + c);
    }
  }
}

template <class L, class From, class To>
void convert(const From* src, int64_t count, To* dst) {
  for (int64_t i = 0; i < count; i += L::kCount) {
    L::store(dst + i, count - i, L::load(src + i, count - i));
  }
}

template <class L, class T>
constexpr ElementwiseMicro<T> elementwise_table() {
  return {{activate_row<L, T, Activation::kNone>, activate_row<L, T, Activation::kRelu>,
           activate_row<L, T, Activation::kRelu6>, activate_row<L, T, Activation::kHardswish>,
           activate_row<L, T, Activation::kSilu>, activate_row<L, T, Activation::kSigmoid>},
          pool_row<L, T, MaxOf>,
          pool_row<L, T, MeanOf>,
          convert<L, float, T>,
          convert<L, T, float>};
}

}  // namespace
}  // namespace ddi
