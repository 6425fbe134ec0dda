// The bank file: docs/reference/bank-file.md says what is in one, mmad_bank/bank/file_format.py is its counterpart. A file
// is accepted here if and only if it is there, with the same word for what is wrong: foreign, truncated, altered, newer.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "lib/file.hpp"
#include "lib/json.hpp"

namespace mmad {

struct StoredTensor {
  std::string dtype;  // as PyTorch calls it
  std::vector<std::int64_t> shape;
  std::uint64_t offset = 0, nbytes = 0;  // in the file
};

struct BankFile {
  Json header;
  std::map<std::string, StoredTensor> tensors;
};

// Reads table and header, and holds them against each other. `file` names itself in messages. Throws Failure.
BankFile read_bank_file(const InputFile& file);

// Throws Failure unless these bytes are those that the header gives the checksum of.
void check_tensor(const BankFile& content, const std::string& path, const std::string& name, const void* data,
                  int threads);

}  // namespace mmad
