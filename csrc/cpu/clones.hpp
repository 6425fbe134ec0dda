// Loops that the compiler vectorises well by itself: compiled once for each instruction set, chosen when the library
// is loaded. Hand-written kernels are in the tile_*.cpp files.
#pragma once

#ifdef MMAD_CLONES  // given by a build for one instruction set
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MMAD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MMAD_CLONES
#endif

// No multiplication and addition of the function become one operation that rounds once: then all clones give the same bits.
// Clang fuses only within one expression; there the two have to be statements of their own.
#if defined(__GNUC__) && !defined(__clang__)
#define MMAD_UNFUSED __attribute__((optimize("fp-contract=off")))
#else
#define MMAD_UNFUSED
#endif
