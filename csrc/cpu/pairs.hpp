// Products of one row of bytes with a few columns that lie row by row: for single pairs, where a tile would read a whole
// panel for each of them.
#pragma once

#include <cstdint>

#include "mmad/cpu_features.hpp"

namespace mmad {

// sums[i] = sum over k of row[k] columns[i][k], exactly (operand.hpp, Format::fixed8). `depth` is a multiple of kByteStep.
using PairKernel = void (*)(const std::int8_t* row, const std::uint8_t* const* columns, int count, std::int64_t depth,
                            std::int32_t* sums);

// The kernel of an instruction set, for rows of row_format(Format::fixed8, isa).
PairKernel pair_kernel(Isa isa);

}  // namespace mmad
