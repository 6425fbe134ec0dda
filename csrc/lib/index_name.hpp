// Names of FAISS indices, which banks are saved with and libmmad does not build.
#pragma once

#include <cstdint>
#include <string>

namespace mmad {

// Whether Python would build such an index for so many vectors; mmad_bank/bank/faiss_index.py has the same limits.
bool is_index_name(const std::string& name, std::int64_t vectors, std::int64_t dim);

}  // namespace mmad
