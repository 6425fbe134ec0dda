// Cuts one buffer into aligned parts.
#pragma once

#include <cstddef>

namespace mmad::cuda {

class Workspace {
 public:
  // With a null buffer nothing is cut, only counted.
  explicit Workspace(void* buffer) : base_(static_cast<char*>(buffer)) {}

  template <typename T>
  T* take(std::size_t count) {
    T* part = reinterpret_cast<T*>(base_ == nullptr ? nullptr : base_ + used_);
    used_ += (count * sizeof(T) + 255) / 256 * 256;
    return part;
  }

  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

}  // namespace mmad::cuda
