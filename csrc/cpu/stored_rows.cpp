#include "cpu/stored_rows.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <utility>

namespace mmad {
namespace {

constexpr std::int64_t kReadBytes = 8 << 20;  // of a request past the cache: disks are slow at smaller ones
// Bytes that a system reads ahead at a time at least, and mostly at most: of a longer request it drops the rest.
constexpr std::int64_t kAskBytes = 128 << 10;
// Rows that lie near each other are asked for with what is between them: in the time of a request a disk reads some tens
// of kilobytes.
constexpr std::int64_t kGap = 64 << 10;

#ifdef MREMAP_FIXED
bool move(std::uint8_t* from, std::int64_t bytes, std::uint8_t* to) {
  const auto size = static_cast<std::size_t>(bytes);
  return ::mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to) != MAP_FAILED;
}
#endif

}  // namespace

std::int64_t StoredRows::page_bytes() {
  static const std::int64_t bytes = ::sysconf(_SC_PAGESIZE);
  return bytes;
}

StoredRows::StoredRows(const void* begin, std::int64_t row_bytes, std::int64_t count, int file, bool shared)
    : begin_(static_cast<std::uint8_t*>(const_cast<void*>(begin))),
      row_bytes_(row_bytes),
      count_(count),
      file_(file < 0 ? -1 : ::fcntl(file, F_DUPFD_CLOEXEC, 0)),
      shared_(shared) {
  // What else a page that is missed would bring, megabytes on some systems, would drive out of memory what is needed.
  const Range all = pages(0, count_);
  ::madvise(all.at, static_cast<std::size_t>(all.bytes), MADV_RANDOM);
#ifdef O_DIRECT
  const bool aligned = reinterpret_cast<std::uintptr_t>(begin_) % static_cast<std::uintptr_t>(page_bytes()) == 0;
  if (file_ >= 0 && aligned)
    direct_ = ::open(("/proc/self/fd/" + std::to_string(file_)).c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
#endif
}

StoredRows::~StoredRows() {
  const Range all = pages(0, count_);
  ::madvise(all.at, static_cast<std::size_t>(all.bytes), MADV_NORMAL);
  for (const int own : {file_, direct_}) {
    if (own >= 0) ::close(own);
  }
  for (const Slot& slot : slots_) {
    if (slot.at != nullptr) ::munmap(slot.at, static_cast<std::size_t>(slot.bytes));
  }
}

// Memory of a slot, for as long as there are rows to be loaded.
bool StoredRows::reserve(std::int64_t bytes, Slot* slot) {
  if (slot->bytes >= bytes) return true;
  const auto size = static_cast<std::size_t>(bytes);
  void* made = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (made == MAP_FAILED) return false;
#ifdef MADV_HUGEPAGE
  ::madvise(made, size, MADV_HUGEPAGE);
#endif
  if (slot->at != nullptr) ::munmap(slot->at, static_cast<std::size_t>(slot->bytes));
  *slot = {static_cast<std::uint8_t*>(made), bytes, {}};
  return true;
}

StoredRows::Range StoredRows::pages(std::int64_t first, std::int64_t end) const {
  const auto page = static_cast<std::uintptr_t>(page_bytes());
  const std::uintptr_t base = reinterpret_cast<std::uintptr_t>(begin_);
  const std::uintptr_t from = (base + static_cast<std::uintptr_t>(first * row_bytes_)) / page * page;
  const std::uintptr_t to = (base + static_cast<std::uintptr_t>(end * row_bytes_) + page - 1) / page * page;
  return {reinterpret_cast<std::uint8_t*>(from), static_cast<std::int64_t>(from - base),
          static_cast<std::int64_t>(to - from)};
}

bool StoredRows::load(std::int64_t first, std::int64_t end, int slot) {
#ifdef MREMAP_FIXED
  const Range range = pages(first, end);
  Slot& own = slots_[slot];
  if (direct_ < 0 || is_cached(range) || !reserve(range.bytes, &own) || !fill(own.at, range)) return false;
  if (!move(own.at, range.bytes, range.at)) return false;
  own.loaded = range;
  return true;
#else
  (void)first, (void)end, (void)slot;
  return false;
#endif
}

void StoredRows::unload(int slot) {
#ifdef MREMAP_FIXED
  Slot& own = slots_[slot];
  const Range range = std::exchange(own.loaded, {});
  if (range.bytes == 0 || !move(range.at, range.bytes, own.at) || map(range)) return;
  // No mapping to be had. What was loaded stays: the values are the same.
  move(own.at, range.bytes, range.at);
  own = {};
#else
  (void)slot;
#endif
}

bool StoredRows::map(const Range& range) const {
  const auto bytes = static_cast<std::size_t>(range.bytes);
  const int kind = (shared_ ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED;
  if (::mmap(range.at, bytes, PROT_READ | PROT_WRITE, kind, file_, range.offset) == MAP_FAILED) return false;
  ::madvise(range.at, bytes, MADV_RANDOM);
  return true;
}

// Past the cache whole pages are read, to the end of the file.
bool StoredRows::fill(std::uint8_t* to, const Range& range) const {
  struct stat found;
  if (::fstat(file_, &found) != 0) return false;
  const std::int64_t bytes = std::min<std::int64_t>(range.bytes, found.st_size - range.offset);
  for (std::int64_t done = 0; done < bytes;) {
    const std::int64_t wanted = std::min(kReadBytes, range.bytes - done);
    const int file = is_cached({range.at + done, range.offset + done, wanted}) ? file_ : direct_;
    const std::int64_t got = ::pread(file, to + done, static_cast<std::size_t>(wanted), range.offset + done);
    if (got <= 0) return false;
    done += got;
  }
  return true;
}

bool StoredRows::is_cached(const Range& range) const {
  std::vector<unsigned char> pages(static_cast<std::size_t>((range.bytes + page_bytes() - 1) / page_bytes()));
  if (::mincore(range.at, static_cast<std::size_t>(range.bytes), pages.data()) != 0) return false;
  return std::all_of(pages.begin(), pages.end(), [](unsigned char page) { return (page & 1) != 0; });
}

void StoredRows::ask(const std::vector<std::int64_t>& rows) const {
  if (rows.empty()) return;
  const auto advise = [this](std::int64_t first, std::int64_t end) {
    const Range range = pages(first, end);
    for (std::int64_t at = 0; at < range.bytes; at += kAskBytes)
      ::madvise(range.at + at, static_cast<std::size_t>(std::min(kAskBytes, range.bytes - at)), MADV_WILLNEED);
  };
  std::int64_t first = rows.front(), end = first;
  for (const std::int64_t row : rows) {
    if ((row - end) * row_bytes_ > kGap) {
      advise(first, end);
      first = row;
    }
    end = row + 1;
  }
  advise(first, end);
}

}  // namespace mmad
