// The instructions of sm_90a that the wgmma product uses: barriers in shared memory, bulk copies, and the matrix product
// of a warpgroup. PTX ISA 8.0 and later, sections on mbarrier, cp.async.bulk and wgmma.
#pragma once

#include "cuda/device.cuh"

namespace mmad::cuda {

#ifndef MMAD_CUDA_EMULATED

// A barrier that counts arrivals and bytes; its phases complete in turn.
using TransferBarrier = std::uint64_t;

__device__ __forceinline__ void barrier_init(TransferBarrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
  asm volatile("fence.proxy.async;\n" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(TransferBarrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier)) : "memory");
}

__device__ __forceinline__ void barrier_arrive_expect(TransferBarrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Waits until the phase with this parity is complete; the phase before the first counts as complete, with parity 1.
__device__ __forceinline__ void barrier_wait(TransferBarrier* barrier, unsigned parity) {
  unsigned done = 0;
  while (done == 0) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}

// A contiguous piece of global memory to shared memory by the copy engine; the barrier receives its bytes.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, int bytes, TransferBarrier* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

// A matrix in shared memory: rows of 128 bytes in groups of eight, 1024 bytes apart, with the 128-byte swizzle. Fields of
// 14 bits in units of 16 bytes: start address (bits 0 to 13), leading offset (16 to 29, not used with a swizzle and one
// period of depth), stride between groups of eight rows (32 to 45); bits 62 and 63: 1, the 128-byte swizzle.
using MatrixDescriptor = std::uint64_t;

__device__ __forceinline__ MatrixDescriptor matrix_descriptor(const unsigned char* matrix) {
  const std::uint64_t start = (shared_address(matrix) & 0x3FFFFu) >> 4;
  return start | std::uint64_t{1} << 16 | std::uint64_t{1024 >> 4} << 32 | std::uint64_t{1} << 62;
}

// The same matrix `bytes` further along its rows (a multiple of 32, within the 128 bytes).
__device__ __forceinline__ MatrixDescriptor advance(MatrixDescriptor matrix, int bytes) {
  return matrix + static_cast<std::uint64_t>(bytes >> 4);
}

// wgmma and the barriers below want whole warps: __syncwarp() brings diverged lanes together.
__device__ __forceinline__ void warpgroup_fence() {
  __syncwarp();
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// c (+)= a b^T by a warpgroup: a 64x16, b 256x16 (or 128x16) bfloat16, c float32. Warp w of the group holds rows 16 w to
// 16 w + 15; c[j] is columns 8 j + 2 (lane % 4) + {0, 1} of row lane / 4 and, then, of row lane / 4 + 8.
#define MMAD_C1(j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define MMAD_C4(j) MMAD_C1(j), MMAD_C1(j + 1), MMAD_C1(j + 2), MMAD_C1(j + 3)
#define MMAD_C16(j) MMAD_C4(j), MMAD_C4(j + 4), MMAD_C4(j + 8), MMAD_C4(j + 12)
__device__ __forceinline__ void multiply_64_rows(float (&c)[32][4], MatrixDescriptor a, MatrixDescriptor b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, p, 1, 1, 0, 0;\n"
      "}\n"
      : MMAD_C16(0), MMAD_C16(16)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}
__device__ __forceinline__ void multiply_64_rows(float (&c)[16][4], MatrixDescriptor a, MatrixDescriptor b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 0, 0;\n"
      "}\n"
      : MMAD_C16(0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}
#undef MMAD_C16
#undef MMAD_C4
#undef MMAD_C1

#endif

}  // namespace mmad::cuda
