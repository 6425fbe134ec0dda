// The checksum of a bank file's tensors: docs/reference/bank-file.md defines it, mmad_bank/_internal/checksum.py is its
// counterpart.
#pragma once

#include <cstddef>
#include <string>

namespace mmad {

// 32 hexadecimal digits.
std::string checksum(const void* data, std::size_t size, int threads);

}  // namespace mmad
