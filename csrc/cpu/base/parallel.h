// How a driver asks its caller for threads: run body(0) ... body(tasks - 1), in any order and on
// any threads, and return when all are done. Keeps the drivers free of a threading library, and of
// the heap, which std::function may ask for a copy of what it calls.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace ddi {

// Refers to something that can be called and must outlive it. An empty one is false, and not to be
// called.
template <class Signature>
class FunctionRef;

template <class Result, class... Args>
class FunctionRef<Result(Args...)> {
 public:
  FunctionRef() = default;

  template <class F, std::enable_if_t<!std::is_same_v<std::decay_t<F>, FunctionRef>, int> = 0>
  FunctionRef(F&& function)
      : target_(reinterpret_cast<uintptr_t>(&function)),
        call_([](uintptr_t target, Args... args) -> Result {
          return (*reinterpret_cast<std::remove_reference_t<F>*>(target))(
              std::forward<Args>(args)...);
        }) {}

  Result operator()(Args... args) const { return call_(target_, std::forward<Args>(args)...); }

  explicit operator bool() const { return call_ != nullptr; }

 private:
  uintptr_t target_ = 0;  // a function's address does not fit every void*
  Result (*call_)(uintptr_t target, Args... args) = nullptr;
};

using Task = FunctionRef<void(int64_t task)>;
using ParallelFor = FunctionRef<void(int64_t tasks, Task body)>;

}  // namespace ddi
