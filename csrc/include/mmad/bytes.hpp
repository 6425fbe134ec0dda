// Many bytes, in memory or in a scratch file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace mmad {

// A scratch file cannot be made, for instance on a full disk.
class ScratchError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Zeros at first. In a scratch file they take no memory that the system could not have back: it is mapped, and has no name,
// so that nothing is left of it whatever ends the process. Copies share a file, whose bytes must not change any more.
class Bytes {
 public:
  Bytes() = default;
  // `folder` is where a file is made; none, empty, for memory. Throws OutOfMemory or ScratchError.
  Bytes(std::int64_t size, const char* purpose, const std::string& folder);

  std::uint8_t* data() { return file_ ? file_.get() : memory_.data(); }
  const std::uint8_t* data() const { return file_ ? file_.get() : memory_.data(); }
  std::size_t size() const { return size_; }
  int file() const { return descriptor_; }  // open as long as the bytes are there; -1 without one

 private:
  std::size_t size_ = 0;
  std::vector<std::uint8_t> memory_;
  std::shared_ptr<std::uint8_t> file_;  // mapped
  int descriptor_ = -1;
};

}  // namespace mmad
