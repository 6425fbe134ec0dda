// Which instruction sets this process may use, decided once at run time.
#pragma once

#include <string>
#include <vector>

namespace mmad {

// Instruction sets in rising order: each includes the ones before it.
enum class Isa { generic, avx2, avx512, amx };

// The sets that the core was compiled for, in rising order.
std::vector<Isa> compiled_isas();

// The best set that the processor and the operating system offer. For AMX this asks Linux for the tile registers.
Isa best_isa();

// The set in use: best_isa(), lowered by the environment variable MMAD_BANK_ISA (generic, avx2, avx512, amx) if it is
// set. Throws std::invalid_argument if the variable holds another word.
Isa active_isa();

// True where the 512-bit kernels can use vpdpwssd (AVX-512 VNNI) instead of vpmaddwd + vpaddd.
bool has_avx512_vnni();

std::string isa_name(Isa isa);

}  // namespace mmad
