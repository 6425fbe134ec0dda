#include "lib/checksum.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/clones.hpp"
#include "cpu/parallel.hpp"
#include "lib/blake2b.hpp"

namespace mmad {
namespace {

constexpr std::size_t kLanes = 16384, kRowBytes = 8 * kLanes, kSegment = 16 << 20;
constexpr std::uint64_t kMultiplier = 0x9E3779B97F4A7C15;

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bank files are mapped as they are: little-endian"
#endif

MMAD_CLONES void take_row(std::uint64_t* lanes, const unsigned char* row) {
  for (std::size_t i = 0; i < kLanes; ++i) {
    std::uint64_t word;
    std::memcpy(&word, row + 8 * i, 8);  // the bytes of a file may lie anywhere
    word = (lanes[i] + word) * kMultiplier;
    lanes[i] = word ^ word >> 32;
  }
}

Blake2b::Digest segment_digest(const unsigned char* data, std::size_t size) {
  std::vector<std::uint64_t> lanes(kLanes);
  std::size_t done = 0;
  for (; done + kRowBytes <= size; done += kRowBytes) take_row(lanes.data(), data + done);
  if (done < size) {
    std::vector<unsigned char> last(kRowBytes);
    std::memcpy(last.data(), data + done, size - done);
    take_row(lanes.data(), last.data());
  }
  Blake2b digest;
  digest.update(lanes.data(), kRowBytes);
  return digest.finish();
}

}  // namespace

std::string checksum(const void* data, std::size_t size, int threads) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  std::vector<Blake2b::Digest> digests((size + kSegment - 1) / kSegment);
  parallel(threads, static_cast<std::int64_t>(digests.size()), 1, [&](Items& items) {
    items.each([&](std::int64_t i) {
      const std::size_t first = static_cast<std::size_t>(i) * kSegment;
      digests[static_cast<std::size_t>(i)] = segment_digest(bytes + first, std::min(kSegment, size - first));
    });
  });
  Blake2b total;
  for (const Blake2b::Digest& digest : digests) total.update(digest.data(), digest.size());
  const std::uint64_t length = size;
  total.update(&length, sizeof length);
  return hexadecimal(total.finish());
}

}  // namespace mmad
