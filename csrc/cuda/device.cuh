// The few CUDA instructions that have no C++ name, and the launch of a kernel.
//
// With MMAD_CUDA_EMULATED the same sources compile as plain C++ and run on the CPU, thread by thread
// (tests/csrc/cuda_emulator.hpp): this header is the only place that knows the difference.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#ifdef MMAD_CUDA_EMULATED
#include "cuda_emulator.hpp"
#else
#include <cuda_runtime.h>
#endif

#include "mmad/cuda_device.hpp"
#include "mmad/host_device.hpp"

namespace mmad::cuda {

constexpr unsigned kFullWarp = 0xFFFFFFFFu;
constexpr int kWarp = 32;
constexpr float kInfinity32 = std::numeric_limits<float>::infinity();
constexpr float kNaN32 = std::numeric_limits<float>::quiet_NaN();
constexpr double kInfinity64 = std::numeric_limits<double>::infinity();

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

struct alignas(16) SharedPair {  // two words that travel together, each whole
  std::uint64_t x, y;
};

#ifdef MMAD_CUDA_EMULATED

using namespace mmad_emulator::instructions;
#define MMAD_DYNAMIC_SHARED(name) unsigned char* name = mmad_emulator::dynamic_shared()

#else

#define MMAD_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory, past the registers and the first-level cache.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(shared_address(shared)), "l"(global) : "memory");
}

__device__ __forceinline__ void copy_async_4(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(shared_address(shared)), "l"(global) : "memory");
}

__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most kPending of this thread's groups are still under way.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Four 8x8 matrices of 16-bit values: lane l gives the address of row l % 8 of matrix l / 8, and receives of every
// matrix the pair (l / 4, 2 (l % 4)).
__device__ __forceinline__ void load_matrix_x4(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// c += a b with a 16x16, b 16x8 bfloat16 and c float32. With g = lane / 4, t = lane % 4: a holds the pairs
// (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8); b the pairs (2t, g), (2t + 8, g); c is (g, 2t), (g, 2t + 1),
// (g + 8, 2t), (g + 8, 2t + 1).
__device__ __forceinline__ void multiply_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                                 std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Words that several thread blocks exchange while they run: never cached in a multiprocessor.
__device__ __forceinline__ SharedPair load_shared_pair(const SharedPair* pair) {
  SharedPair value;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];\n" : "=l"(value.x), "=l"(value.y) : "l"(pair) : "memory");
  return value;
}

__device__ __forceinline__ void store_shared_pair(SharedPair* pair, const SharedPair& value) {
  asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};\n" ::"l"(pair), "l"(value.x), "l"(value.y) : "memory");
}

__device__ __forceinline__ std::uint32_t load_shared_word(const std::uint32_t* word) {
  std::uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];\n" : "=r"(value) : "l"(word) : "memory");
  return value;
}

// The body of a loop that waits for another thread block.
__device__ __forceinline__ void wait_a_moment() {}

// Lets a kernel have this much dynamic shared memory on the current device. What it may have only ever grows: a thread
// that asks for less does not take away what another thread is about to use.
inline void allow_shared(const void* kernel, std::size_t bytes, const char* name) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, std::size_t> allowed;
  int device = 0;
  check(cudaGetDevice(&device), name);
  const std::lock_guard<std::mutex> lock(mutex);
  std::size_t& most = allowed[{kernel, device}];
  if (bytes <= most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), name);
  most = bytes;
}

// A kernel whose launch is chained begins while the one before it in the stream ends: it must wait before it touches what
// that one reads or writes, and it lets the next one begin. Nothing happens where neither is chained, or before sm_90.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared,
            cudaStream_t stream, Launch how, Arguments&&... arguments) {
  if (shared > 48 * 1024) allow_shared(reinterpret_cast<const void*>(kernel), shared, name);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  if (how == Launch::kCooperative) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  } else {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  config.attrs = &attribute;
  config.numAttrs = how == Launch::kPlain ? 0 : 1;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

#endif

inline unsigned blocks_for(std::int64_t items, int a_block) {
  return static_cast<unsigned>((items + a_block - 1) / a_block);
}

}  // namespace mmad::cuda
