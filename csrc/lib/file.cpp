#include "lib/file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <memory>
#include <system_error>

#include "lib/failure.hpp"

namespace mmad {
namespace {

bool same_time(const struct stat& a, const struct stat& b) {
#if defined(__APPLE__)
  return a.st_mtimespec.tv_sec == b.st_mtimespec.tv_sec && a.st_mtimespec.tv_nsec == b.st_mtimespec.tv_nsec;
#else
  return a.st_mtim.tv_sec == b.st_mtim.tv_sec && a.st_mtim.tv_nsec == b.st_mtim.tv_nsec;
#endif
}

}  // namespace

InputFile::InputFile(const std::string& path) : path_(path) {
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe without a writer would wait
  if (descriptor_ < 0) fail(errno);
  int error = 0;
  if (::fstat(descriptor_, &status_) != 0) {
    error = errno;
  } else if (!S_ISREG(status_.st_mode)) {
    error = S_ISDIR(status_.st_mode) ? EISDIR : EINVAL;
  }
  if (error != 0) {
    close();
    fail(error);
  }
  const std::unique_ptr<char, void (*)(void*)> real(::realpath(path.c_str(), nullptr), &std::free);
  real_path_ = real ? real.get() : path;
}

InputFile::~InputFile() { close(); }

void InputFile::close() {
  if (descriptor_ >= 0) ::close(descriptor_);
  descriptor_ = -1;
}

void InputFile::fail(int error) const {
  throw Failure(MMAD_ERROR_IO, path_ + ": cannot be read (" + std::generic_category().message(error) + ")");
}

void InputFile::read(std::uint64_t offset, void* to, std::size_t count) const {
  auto* bytes = static_cast<char*>(to);
  while (count > 0) {
    const ssize_t got = ::pread(descriptor_, bytes, count, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(errno);
    if (got == 0) throw Failure(MMAD_ERROR_TRUNCATED, path_ + ": truncated while it was read");
    bytes += got, offset += static_cast<std::uint64_t>(got), count -= static_cast<std::size_t>(got);
  }
}

void InputFile::check_unchanged() const {
  struct stat now{};
  if (::stat(real_path_.c_str(), &now) != 0) return;                         // removed: what is mapped stays as it is
  if (now.st_dev != status_.st_dev || now.st_ino != status_.st_ino) return;  // replaced by renaming
  if (now.st_size == status_.st_size && same_time(now, status_)) return;
  throw Failure(MMAD_ERROR_IO, real_path_ +
                                   ": was changed in place while a bank was mapped from it; open it again, and replace "
                                   "bank files by renaming");
}

Mapping::Mapping(const InputFile& file) : size_(static_cast<std::size_t>(file.size())) {
  if (size_ == 0) return;
  memory_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.descriptor(), 0);
  if (memory_ == MAP_FAILED) {
    const int error = errno;
    memory_ = nullptr;
    if (error == ENOMEM) throw std::bad_alloc();
    throw Failure(MMAD_ERROR_IO, file.path() + ": cannot be mapped (" + std::generic_category().message(error) + ")");
  }
}

Mapping::~Mapping() {
  if (memory_ != nullptr) ::munmap(memory_, size_);
}

void Mapping::release(std::uint64_t first, std::uint64_t count) const {
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t low = (first + page - 1) / page * page, high = (first + count) / page * page;
  if (memory_ == nullptr || low >= high) return;
  ::madvise(static_cast<char*>(memory_) + low, static_cast<std::size_t>(high - low), MADV_DONTNEED);
}

}  // namespace mmad
