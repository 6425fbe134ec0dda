// Rows in a mapped file, of more than memory holds: a run of them is brought to memory, and let go.
#pragma once

#include <cstdint>
#include <vector>

namespace mmad {

class StoredRows {
 public:
  // `begin` is where the first byte of `file`, a descriptor that may be closed, is mapped; without one, -1, nothing is
  // loaded. `shared` says how it is mapped. The mapping must outlive this.
  StoredRows(const void* begin, std::int64_t row_bytes, std::int64_t count, int file, bool shared);
  ~StoredRows();
  static std::int64_t page_bytes();
  StoredRows(const StoredRows&) = delete;
  StoredRows& operator=(const StoredRows&) = delete;

  // Rows `first` to `end` are read past the system's cache into memory that takes the mapping's place: on fast disks the
  // cache is dearer than the disk. What the cache has of them is copied from there. False where it has all, or where that
  // cannot be done; nothing has changed then. One run is loaded at a time in each `slot` of two.
  bool load(std::int64_t first, std::int64_t end, int slot);
  // What the slot has loaded, if it has, is mapped as before.
  void unload(int slot);
  // Has the system read the listed rows ahead, in ascending order.
  void ask(const std::vector<std::int64_t>& rows) const;

 private:
  struct Range {
    std::uint8_t* at;
    std::int64_t offset, bytes;
  };
  struct Slot {
    std::uint8_t* at;
    std::int64_t bytes;
    Range loaded;  // no bytes: none
  };

  Range pages(std::int64_t first, std::int64_t end) const;
  bool is_cached(const Range& range) const;
  static bool reserve(std::int64_t bytes, Slot* slot);
  bool map(const Range& range) const;
  bool fill(std::uint8_t* to, const Range& range) const;

  std::uint8_t* begin_;
  std::int64_t row_bytes_, count_;
  int file_, direct_ = -1;
  bool shared_;
  Slot slots_[2] = {};
};

}  // namespace mmad
