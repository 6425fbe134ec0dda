#include "mmad/cpu_features.hpp"

#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mmad {
namespace {

#if defined(__x86_64__)

bool amx_allowed_by_linux() {
  // Tile data is an extended state component (18) that a process must ask for before its first tile instruction.
  constexpr int arch_req_xcomp_perm = 0x1023;
  constexpr int xfeature_tiledata = 18;
  return syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_tiledata) == 0;
}

bool has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  const bool tile = edx & (1u << 24);
  const bool bf16 = edx & (1u << 22), int8 = edx & (1u << 25);
  return tile && bf16 && int8;
}

Isa detect() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::generic;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!avx512) return Isa::avx2;
  return has_amx() && amx_allowed_by_linux() ? Isa::amx : Isa::avx512;
}

#else

Isa detect() { return Isa::generic; }

#endif

Isa choose() {
  const Isa best = best_isa();
  const char* wish = std::getenv("MMAD_BANK_ISA");
  if (wish == nullptr || *wish == '\0') return best;
  for (const Isa isa : {Isa::generic, Isa::avx2, Isa::avx512, Isa::amx}) {
    if (isa_name(isa) == wish) return isa < best ? isa : best;
  }
  throw std::invalid_argument(std::string("MMAD_BANK_ISA: expected generic, avx2, avx512 or amx, found '") + wish +
                              "'");
}

}  // namespace

std::vector<Isa> compiled_isas() {
#if defined(__x86_64__)
  return {Isa::generic, Isa::avx2, Isa::avx512, Isa::amx};
#else
  return {Isa::generic};
#endif
}

Isa best_isa() {
  static const Isa isa = detect();
  return isa;
}

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

bool has_avx512_vnni() {
#if defined(__x86_64__)
  return active_isa() >= Isa::avx512 && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

std::string isa_name(Isa isa) {
  switch (isa) {
    case Isa::generic: return "generic";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::amx: return "amx";
  }
  return "unknown";
}

}  // namespace mmad
