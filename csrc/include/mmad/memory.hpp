// Out of memory, with the size that was wanted.
#pragma once

#include <cstdint>
#include <new>
#include <string>
#include <utility>
#include <vector>

namespace mmad {

class OutOfMemory : public std::bad_alloc {
 public:
  OutOfMemory(std::uint64_t bytes, const char* purpose)
      : message_("out of memory: " + std::to_string((bytes >> 20) + 1) + " MB wanted for " + purpose) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// values.resize(size, value), and a word about what was too large.
template <typename T>
void resize_for(const char* purpose, std::vector<T>* values, std::int64_t size, const T& value = T()) {
  try {
    values->resize(static_cast<std::size_t>(size), value);
  } catch (const std::bad_alloc&) {
    throw OutOfMemory(static_cast<std::uint64_t>(size) * sizeof(T), purpose);
  }
}

}  // namespace mmad
