#include "mmad/bytes.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <system_error>

#include "mmad/memory.hpp"

namespace mmad {
namespace {

[[noreturn]] void fail(const std::string& folder, std::size_t size, int error) {
  throw ScratchError(folder + ": cannot hold a scratch file of " + std::to_string((size >> 20) + 1) + " MB (" +
                     std::generic_category().message(error) + ")");
}

// A file without a name, of which every byte has its place on the disk: what is written to a mapping later cannot fail.
int make_file(const std::string& folder, std::size_t size) {
  std::string path = folder + "/.mmad-bank-XXXXXX";
  const int descriptor = ::mkstemp(path.data());
  if (descriptor < 0) fail(folder, size, errno);
  ::unlink(path.c_str());
  const int error = ::posix_fallocate(descriptor, 0, static_cast<off_t>(size));
  if (error != 0) {
    ::close(descriptor);
    fail(folder, size, error);
  }
  return descriptor;
}

}  // namespace

Bytes::Bytes(std::int64_t size, const char* purpose, const std::string& folder)
    : size_(static_cast<std::size_t>(size)) {
  if (folder.empty() || size_ == 0) {
    resize_for<std::uint8_t>(purpose, &memory_, size);
    return;
  }
  const int descriptor = make_file(folder, size_);
  void* mapped = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (mapped == MAP_FAILED) {
    const int error = errno;
    ::close(descriptor);
    fail(folder, size_, error);
  }
  const std::size_t length = size_;
  descriptor_ = descriptor;
  file_ = std::shared_ptr<std::uint8_t>(static_cast<std::uint8_t*>(mapped), [length, descriptor](std::uint8_t* memory) {
    ::munmap(memory, length);
    ::close(descriptor);
  });
}

}  // namespace mmad
