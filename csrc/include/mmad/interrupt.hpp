// How a caller takes back a call that runs long.
#pragma once

#include <functional>

namespace mmad {

// While it lives, kernels that this thread calls ask `poll` about ten times per second, on this thread. What `poll`
// throws ends the kernel, whose outputs are then of no use, and reaches the caller.
class InterruptScope {
 public:
  explicit InterruptScope(std::function<void()> poll);
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

 private:
  std::function<void()> poll_;
  const std::function<void()>* outer_;
};

}  // namespace mmad
