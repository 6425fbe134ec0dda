// BLAKE2b without a key (RFC 7693), for digests of 16 bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace mmad {

class Blake2b {
 public:
  static constexpr std::size_t kDigestBytes = 16;
  using Digest = std::array<std::uint8_t, kDigestBytes>;

  Blake2b();
  void update(const void* data, std::size_t size);
  Digest finish();  // once

 private:
  static constexpr std::size_t kBlockBytes = 128;
  void compress(bool last);

  std::array<std::uint64_t, 8> state_;
  std::array<std::uint8_t, kBlockBytes> block_{};
  std::size_t filled_ = 0;
  std::uint64_t count_ = 0;  // bytes; fewer than 2^64
};

std::string hexadecimal(const Blake2b::Digest& digest);

}  // namespace mmad
