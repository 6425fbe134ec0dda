// A file that is opened once: what is verified and what is used later are of that one file, whatever happens to its name.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace mmad {

class InputFile {
 public:
  // Throws Failure (MMAD_ERROR_IO) if it cannot be opened or is no regular file.
  explicit InputFile(const std::string& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  std::uint64_t size() const { return static_cast<std::uint64_t>(status_.st_size); }

  // Bytes [offset, offset + count); throws if they are not there.
  void read(std::uint64_t offset, void* to, std::size_t count) const;

  // Throws if the file, where its name still is the one that was opened, has another size or time of change than then.
  void check_unchanged() const;

  int descriptor() const { return descriptor_; }
  void close();  // a mapping outlives it

 private:
  [[noreturn]] void fail(int error) const;

  std::string path_, real_path_;
  int descriptor_ = -1;
  struct stat status_{};
};

// Memory that holds a file's bytes, mapped; nothing is copied until it is touched.
class Mapping {
 public:
  explicit Mapping(const InputFile& file);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  const unsigned char* data() const { return static_cast<const unsigned char*>(memory_); }

  // Gives back the memory of whole pages within [first, first + count); what is touched later comes from the file again.
  void release(std::uint64_t first, std::uint64_t count) const;

 private:
  void* memory_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace mmad
