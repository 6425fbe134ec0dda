// Loops that the compiler vectorises well by itself: compiled once for each instruction set, chosen when the library
// is loaded. Hand-written kernels are in the tile_*.cpp files.
#pragma once

#ifdef MMAD_CLONES  // given by a build for one instruction set
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MMAD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MMAD_CLONES
#endif
