// Runs the CUDA kernels of csrc/cuda on the CPU, one fiber a CUDA thread, so that their logic is tested where there is
// no GPU. It is slow, and deliberately unkind where the hardware leaves something open:
//   - shared memory starts as NaN patterns, and fibers run in an order that changes from launch to launch;
//   - an asynchronous copy happens when its group is waited for, not before, so that a missing wait is seen;
//   - the matrix unit cuts off low bits as badly as the model in cuda_operand.hpp allows;
//   - work on a stream happens as late as the events that others wait for allow, or, on a stream that the core made for
//     itself, as early as those that it waits for allow, so that a missing event is seen. The null stream works at once.
// What it cannot show: races between a barrier's sides that need true parallelism, speed, and the encoding of
// instructions. Those are for compute-sanitizer and a GPU.
#pragma once

#if !defined(__x86_64__)
#error "the CUDA emulator switches fibers with x86-64 code"
#endif

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "mmad/cuda_device.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct CUstream_st;

namespace mmad_emulator {

struct Event {
  CUstream_st* stream = nullptr;  // where it was recorded last
  unsigned long long recorded = 0;
  unsigned long long reached = 0;
};

struct Work {
  std::function<void()> run;
  std::shared_ptr<Event> wait;  // must have reached `ticket` first
  unsigned long long ticket = 0;
};

}  // namespace mmad_emulator

struct CUstream_st {
  std::deque<mmad_emulator::Work> queue;
  bool eager = false;
};

namespace mmad_emulator {

inline std::vector<CUstream_st*>& streams() {
  static std::vector<CUstream_st*> all;
  return all;
}
// What streams that the core makes do: work as early as they may (true), or as late (false).
inline bool& eager_copies() {
  static bool eager = false;
  return eager;
}

inline bool may_run(const CUstream_st& stream) {
  if (stream.queue.empty()) return false;
  const Work& next = stream.queue.front();
  return next.wait == nullptr || next.wait->reached >= next.ticket;
}
inline void run_next(CUstream_st& stream) {
  const Work next = std::move(stream.queue.front());
  stream.queue.pop_front();
  if (next.run) next.run();
}
inline void pump() {  // the eager streams go on
  for (bool progress = true; progress;) {
    progress = false;
    for (CUstream_st* stream : streams()) {
      for (; stream->eager && may_run(*stream); progress = true) run_next(*stream);
    }
  }
}
inline void force(CUstream_st& stream, const std::function<bool()>& until) {
  while (!until()) {
    if (stream.queue.empty()) throw std::runtime_error("cuda emulator: a stream waits for what nobody does");
    if (may_run(stream)) {
      run_next(stream);
    } else {
      const Work& next = stream.queue.front();
      const std::shared_ptr<Event> wait = next.wait;
      const unsigned long long ticket = next.ticket;
      force(*wait->stream, [=] { return wait->reached >= ticket; });
    }
    pump();
  }
}
inline void enqueue(CUstream_st* stream, Work work) {
  if (stream == nullptr) {
    if (work.wait != nullptr && work.wait->reached < work.ticket) {
      force(*work.wait->stream, [&] { return work.wait->reached >= work.ticket; });
    }
    if (work.run) work.run();
  } else {
    stream->queue.push_back(std::move(work));
  }
  pump();
}

extern "C" void mmad_switch_fiber(void** save, void* load);

#ifdef MMAD_CUDA_EMULATOR_MAIN
// Saves the callee-saved registers on this stack, remembers the stack, and does the reverse on the other one.
asm(R"(
.text
.globl mmad_switch_fiber
mmad_switch_fiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#endif

struct Barrier {
  unsigned arrived = 0;
  unsigned generation = 0;
};

struct Slot {  // what a lane shows to the other lanes of its warp
  std::uint64_t word;
  std::uint32_t a[4];
  std::uint32_t b[2];
  const unsigned char* row;
};

struct Warp {
  Barrier barrier;
  unsigned live = 0;
  Slot slots[2][32];
};

struct Block {
  dim3 index;
  Barrier barrier;
  unsigned live = 0;
  unsigned votes = 0;
  unsigned result = 0;
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char[]> storage;
  unsigned char* shared = nullptr;
};

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Fiber {
  void* stack_pointer = nullptr;
  Block* block = nullptr;
  dim3 thread;
  unsigned lane = 0;
  unsigned warp = 0;
  unsigned turn = 0;  // which of the two slot sets the next exchange uses
  const Barrier* waiting_for = nullptr;
  unsigned waiting_generation = 0;
  bool spinning = false;
  bool done = false;
  std::vector<std::vector<Copy>> groups{1};
};

struct Machine {
  std::function<void()> entry;
  dim3 grid, threads;
  void* scheduler = nullptr;
  Fiber* current = nullptr;
  unsigned launches = 0;
  std::vector<void*> stacks;
};

inline Machine& machine() {
  static Machine the_machine;
  return the_machine;
}
inline Fiber& self() { return *machine().current; }
inline unsigned char* dynamic_shared() { return self().block->shared; }

constexpr std::size_t kStackBytes = 256 << 10;

inline void yield() { mmad_switch_fiber(&self().stack_pointer, machine().scheduler); }

inline void leave(Barrier& barrier, unsigned& live) {  // a thread that has returned no longer takes part
  --live;
  if (live > 0 && barrier.arrived == live) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
}

inline void run_fiber() {
  machine().entry();
  Fiber& fiber = self();
  fiber.done = true;
  leave(fiber.block->barrier, fiber.block->live);
  Warp& warp = fiber.block->warps[fiber.warp];
  leave(warp.barrier, warp.live);
  yield();
  std::abort();
}

inline void arrive_and_wait(Barrier& barrier, unsigned live) {
  Fiber& fiber = self();
  if (++barrier.arrived == live) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  fiber.waiting_for = &barrier;
  fiber.waiting_generation = barrier.generation;
  yield();
}

inline void* new_stack(std::size_t index) {
  auto& stacks = machine().stacks;
  while (stacks.size() <= index) {
    void* memory =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stacks.push_back(memory);
  }
  return stacks[index];
}

inline void start(Fiber& fiber, std::size_t index) {
  auto* top = reinterpret_cast<void**>(static_cast<char*>(new_stack(index)) + kStackBytes);
  *--top = nullptr;  // alignment: a function starts with the stack pointer 8 below a multiple of 16
  *--top = reinterpret_cast<void*>(&run_fiber);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
}

inline void run_blocks(std::vector<Block>& blocks) {
  Machine& m = machine();
  std::vector<Fiber> fibers(blocks.size() * m.threads.x);
  for (std::size_t i = 0; i < fibers.size(); ++i) {
    Fiber& fiber = fibers[i];
    fiber.block = &blocks[i / m.threads.x];
    fiber.thread = dim3(static_cast<unsigned>(i % m.threads.x), 0, 0);
    fiber.lane = fiber.thread.x % 32;
    fiber.warp = fiber.thread.x / 32;
    start(fiber, i);
  }
  std::vector<Fiber*> order;
  for (Fiber& fiber : fibers) order.push_back(&fiber);
  const unsigned kind = m.launches % 4;  // forwards, backwards, odd lanes first, a fixed shuffle
  if (kind == 1) std::reverse(order.begin(), order.end());
  if (kind == 2) std::stable_partition(order.begin(), order.end(), [](Fiber* f) { return f->lane % 2 == 1; });
  if (kind == 3) {
    unsigned state = 12345u + m.launches;
    for (std::size_t i = order.size(); i > 1; --i) {
      state = state * 1664525u + 1013904223u;
      std::swap(order[i - 1], order[(state >> 8) % i]);
    }
  }
  std::size_t remaining = fibers.size();
  unsigned idle_rounds = 0;
  while (remaining > 0) {
    bool progress = false;
    for (Fiber* fiber : order) {
      if (fiber->done) continue;
      if (fiber->waiting_for != nullptr) {
        if (fiber->waiting_for->generation == fiber->waiting_generation) continue;
        fiber->waiting_for = nullptr;
      }
      fiber->spinning = false;
      m.current = fiber;
      mmad_switch_fiber(&m.scheduler, fiber->stack_pointer);
      if (fiber->done) --remaining;
      if (!fiber->spinning) progress = true;
    }
    idle_rounds = progress ? 0 : idle_rounds + 1;
    if (idle_rounds > 100000) {
      std::fprintf(stderr, "cuda emulator: all threads wait for each other\n");
      std::abort();
    }
  }
}

template <typename Kernel>
void run_kernel(Kernel&& kernel, dim3 grid, int threads, std::size_t shared, bool cooperative) {
  if (threads % 32 != 0) throw std::runtime_error("cuda emulator: whole warps only");
  if (shared > (227u << 10)) throw std::runtime_error("cuda emulator: too much shared memory");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
    throw std::runtime_error("cuda emulator: bad grid");
  }
  Machine& m = machine();
  m.entry = kernel;
  m.grid = grid;
  m.threads = dim3(static_cast<unsigned>(threads));
  ++m.launches;
  const std::uint64_t count = std::uint64_t{grid.x} * grid.y * grid.z;
  std::vector<Block> blocks;
  for (std::uint64_t i = 0; i < count; ++i) {
    Block block;
    block.index = dim3(static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                       static_cast<unsigned>(i / grid.x / grid.y));
    block.live = m.threads.x;
    block.warps.resize(m.threads.x / 32);
    for (Warp& warp : block.warps) warp.live = 32;
    block.storage = std::make_unique<unsigned char[]>(shared + 1024 + 64);
    block.shared = block.storage.get() + (1024 - reinterpret_cast<std::uintptr_t>(block.storage.get()) % 1024);
    std::memset(block.storage.get(), 0xFF, shared + 1024 + 64);
    unsigned char* end = block.shared + shared;
    blocks.push_back(std::move(block));
    if (!cooperative) {
      run_blocks(blocks);
      blocks.clear();
    }
    (void)end;
  }
  if (cooperative) run_blocks(blocks);
}

inline Warp& my_warp() { return self().block->warps[self().warp]; }

// Shows `mine` to the warp and returns everybody's slots. Two sets in turn: a lane can be at most one exchange ahead.
template <typename Fill>
const Slot* exchange(Fill&& fill) {
  Fiber& fiber = self();
  Warp& warp = my_warp();
  Slot* slots = warp.slots[fiber.turn & 1];
  ++fiber.turn;
  fill(slots[fiber.lane]);
  arrive_and_wait(warp.barrier, warp.live);
  return slots;
}

template <typename T>
std::uint64_t to_word(T value) {
  std::uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  return word;
}
template <typename T>
T from_word(std::uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof(T));
  return value;
}
template <typename T>
const Slot* show(T value) {
  return exchange([value](Slot& slot) { slot.word = to_word(value); });
}

inline double cut(double value, double unit) { return std::trunc(value / unit) * unit; }

// The accumulator after eight more products, by the worst of the models that cuda_operand.hpp covers.
inline float add_cut(float accumulator, const double* products, int count) {
  double largest = std::fabs(static_cast<double>(accumulator));
  for (int i = 0; i < count; ++i) largest = std::max(largest, std::fabs(products[i]));
  if (largest == 0.0 || !std::isfinite(largest)) {
    double sum = accumulator;
    for (int i = 0; i < count; ++i) sum += products[i];
    return static_cast<float>(sum);
  }
  const double unit = std::ldexp(1.0, std::ilogb(largest) - 23);
  double sum = cut(accumulator, unit);
  for (int i = 0; i < count; ++i) sum += cut(products[i], unit);
  if (sum == 0.0) return 0.0f;
  sum = cut(sum, std::ldexp(1.0, std::ilogb(sum) - 23));
  return std::fabs(sum) < 1.17549435e-38 ? 0.0f : static_cast<float>(sum);
}

namespace instructions {

inline void copy_async(void* to, const void* from, int bytes) {
  if (reinterpret_cast<std::uintptr_t>(to) % bytes != 0 || reinterpret_cast<std::uintptr_t>(from) % bytes != 0) {
    throw std::runtime_error("cuda emulator: misaligned asynchronous copy");
  }
  self().groups.back().push_back({to, from, bytes});
}
inline void copy_async_16(void* shared, const void* global) { copy_async(shared, global, 16); }
inline void copy_async_4(void* shared, const void* global) { copy_async(shared, global, 4); }
inline void copy_async_commit() { self().groups.emplace_back(); }
template <int kPending>
void copy_async_wait() {
  auto& groups = self().groups;  // the last one is still open
  while (groups.size() > 1 + kPending) {
    for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
    groups.erase(groups.begin());
  }
}

inline void load_matrix_x4(std::uint32_t (&r)[4], const void* row) {
  const Slot* slots = exchange([row](Slot& slot) { slot.row = static_cast<const unsigned char*>(row); });
  for (int i = 0; i < 4; ++i) std::memcpy(&r[i], slots[i * 8 + self().lane / 4].row + 4 * (self().lane % 4), 4);
}

inline double half_of(std::uint32_t pair, int high) { return from_word<float>(high ? pair & 0xFFFF0000u : pair << 16); }

inline void multiply_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  const Slot* slots = exchange([&](Slot& slot) {
    std::copy(a, a + 4, slot.a);
    slot.b[0] = b0;
    slot.b[1] = b1;
  });
  const unsigned g = self().lane / 4, t = self().lane % 4;
  for (int i = 0; i < 4; ++i) {
    const unsigned column = 2 * t + (i & 1);
    for (int part = 0; part < 2; ++part) {  // columns 0 to 7 of a, then 8 to 15
      double products[8];
      for (unsigned k = 0; k < 8; ++k) {
        const std::uint32_t left = slots[g * 4 + k / 2].a[(i >> 1) + 2 * part];
        const std::uint32_t right = slots[column * 4 + k / 2].b[part];
        products[k] = half_of(left, k & 1) * half_of(right, k & 1);
      }
      c[i] = add_cut(c[i], products, 8);
    }
  }
}

// The instructions of csrc/cuda/hopper.cuh. A barrier word: phase (bit 0), arrivals wanted (1 to 15), arrivals missing (16
// to 31), bytes missing (32 to 63).
using TransferBarrier = std::uint64_t;
inline void barrier_init(TransferBarrier* barrier, int arrivals) {
  *barrier = static_cast<std::uint64_t>(arrivals) << 1 | static_cast<std::uint64_t>(arrivals) << 16;
}
inline void barrier_init_fence() {}
inline void barrier_change(TransferBarrier* barrier, int arrivals, int bytes) {
  std::uint64_t word = *barrier;
  std::uint64_t missing = (word >> 16 & 0xFFFFu) - static_cast<std::uint64_t>(arrivals);
  const std::uint64_t bytes_missing = (word >> 32) + static_cast<std::uint64_t>(static_cast<std::int64_t>(bytes));
  const std::uint64_t wanted = word >> 1 & 0x7FFFu;
  std::uint64_t phase = word & 1u;
  if (missing == 0 && (bytes_missing & 0xFFFFFFFFu) == 0) {
    phase ^= 1u;
    missing = wanted;
  }
  *barrier = phase | wanted << 1 | missing << 16 | bytes_missing << 32;
}
inline void barrier_arrive(TransferBarrier* barrier) { barrier_change(barrier, 1, 0); }
inline void barrier_arrive_expect(TransferBarrier* barrier, int bytes) {
  *barrier += static_cast<std::uint64_t>(bytes) << 32;
  barrier_change(barrier, 1, 0);
}
inline void barrier_wait(TransferBarrier* barrier, unsigned parity) {
  while ((*barrier & 1u) == parity) {
    self().spinning = true;
    yield();
  }
}
inline void copy_bulk(void* shared, const void* global, int bytes, TransferBarrier* barrier) {
  const auto address = reinterpret_cast<std::uintptr_t>(shared) | reinterpret_cast<std::uintptr_t>(global);
  if (address % 16 != 0 || bytes % 16 != 0) throw std::runtime_error("cuda emulator: misaligned bulk copy");
  self().spinning = true;
  yield();  // some time passes before the bytes are there
  std::memcpy(shared, global, static_cast<std::size_t>(bytes));
  barrier_change(barrier, 0, -bytes);
}

using MatrixDescriptor = const unsigned char*;
inline MatrixDescriptor matrix_descriptor(const unsigned char* matrix) { return matrix; }
inline MatrixDescriptor advance(MatrixDescriptor matrix, int bytes) { return matrix + bytes; }
inline void warpgroup_fence() {}
inline void warpgroup_commit() {}
template <int kPending>
void warpgroup_wait() {}
template <int kRegisters>
void registers_down() {}
template <int kRegisters>
void registers_up() {}

// Element (row, depth) of a matrix of 128-byte rows with the 128-byte swizzle: bits 4 to 6 of the address are those of
// the plain layout xor bits 7 to 9.
inline double swizzled_element(MatrixDescriptor matrix, int row, int depth) {
  auto address =
      reinterpret_cast<std::uintptr_t>(matrix) + static_cast<unsigned>(row / 8 * 1024 + row % 8 * 128 + depth * 2);
  address ^= (address >> 7 & 7) << 4;
  std::uint16_t bits;
  std::memcpy(&bits, reinterpret_cast<const void*>(address), 2);
  return from_word<float>(static_cast<std::uint32_t>(bits) << 16);
}

template <std::size_t kGroups>
void multiply_64_rows(float (&c)[kGroups][4], MatrixDescriptor a, MatrixDescriptor b, bool add) {
  const int lane = static_cast<int>(self().lane), warp = static_cast<int>(self().warp % 4);
  double left[2][16];
  for (int half = 0; half < 2; ++half) {
    for (int k = 0; k < 16; ++k) left[half][k] = swizzled_element(a, 16 * warp + lane / 4 + 8 * half, k);
  }
  for (int j = 0; j < static_cast<int>(kGroups); ++j) {
    for (int e = 0; e < 4; ++e) {
      double products[16];
      const int column = 8 * j + 2 * (lane % 4) + e % 2;
      for (int k = 0; k < 16; ++k) products[k] = left[e / 2][k] * swizzled_element(b, column, k);
      c[j][e] = add_cut(add ? c[j][e] : 0.0f, products, 16);
    }
  }
}

inline std::uint32_t load_shared_word(const std::uint32_t* word) { return *word; }
template <typename Pair>
Pair load_shared_pair(const Pair* pair) {
  return *pair;
}
// The second word comes later than the first: a reader has to look at both.
template <typename Pair>
void store_shared_pair(Pair* pair, const Pair& value) {
  pair->x = value.x;
  self().spinning = true;
  yield();
  pair->y = value.y;
}
inline void wait_a_moment() {
  self().spinning = true;
  yield();
}

template <typename... Parameters, typename... Arguments>
void launch(const char*, void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared, CUstream_st* stream,
            mmad::cuda::Launch how, Arguments&&... arguments) {
  const std::function<void()> body = [=] { kernel(static_cast<Parameters>(arguments)...); };
  enqueue(stream, {[=] { run_kernel(body, grid, threads, shared, how == mmad::cuda::Launch::kCooperative); }, nullptr, 0});
}

inline void wait_for_previous() {}
inline void let_next_begin() {}

}  // namespace instructions
}  // namespace mmad_emulator

#define threadIdx (mmad_emulator::self().thread)
#define blockIdx (mmad_emulator::self().block->index)
#define blockDim (mmad_emulator::machine().threads)
#define gridDim (mmad_emulator::machine().grid)

inline void __syncthreads() {
  auto& block = *mmad_emulator::self().block;
  mmad_emulator::arrive_and_wait(block.barrier, block.live);
}
inline int __syncthreads_or(int vote) {
  auto& block = *mmad_emulator::self().block;
  if (vote) block.votes = 1;
  if (block.barrier.arrived + 1 == block.live) {
    block.result = block.votes;
    block.votes = 0;
  }
  mmad_emulator::arrive_and_wait(block.barrier, block.live);
  const int result = static_cast<int>(block.result);
  return result;
}
inline void __syncwarp(unsigned = ~0u) { mmad_emulator::show(0); }
inline void __threadfence() {}
template <typename T>
T __shfl_sync(unsigned, T value, int source) {
  return mmad_emulator::from_word<T>(mmad_emulator::show(value)[source & 31].word);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const auto lane = mmad_emulator::self().lane;
  return mmad_emulator::from_word<T>(mmad_emulator::show(value)[lane ^ static_cast<unsigned>(mask)].word);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned delta) {
  const auto lane = mmad_emulator::self().lane;
  return mmad_emulator::from_word<T>(mmad_emulator::show(value)[lane >= delta ? lane - delta : lane].word);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  const auto* slots = mmad_emulator::show(predicate != 0 ? 1u : 0u);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= (slots[i].word != 0 ? 1u : 0u) << i;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline unsigned __reduce_min_sync(unsigned, unsigned value) {
  const auto* slots = mmad_emulator::show(value);
  unsigned best = ~0u;
  for (int i = 0; i < 32; ++i) best = std::min(best, static_cast<unsigned>(slots[i].word));
  return best;
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) { return ~__reduce_min_sync(0, ~value); }
inline int __reduce_max_sync(unsigned, int value) {  // the sign turned, so that the order is that of unsigned numbers
  return static_cast<int>(__reduce_max_sync(0, static_cast<unsigned>(value) ^ 0x80000000u) ^ 0x80000000u);
}
inline unsigned __reduce_add_sync(unsigned, unsigned value) {
  const auto* slots = mmad_emulator::show(value);
  unsigned sum = 0;
  for (int i = 0; i < 32; ++i) sum += static_cast<unsigned>(slots[i].word);
  return sum;
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }

template <typename T>
T __ldg(const T* pointer) {
  return *pointer;
}
template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <typename T>
T atomicMax(T* address, T value) {
  const T old = *address;
  *address = std::max(old, value);
  return old;
}
template <typename T>
T atomicMin(T* address, T value) {
  const T old = *address;
  *address = std::min(old, value);
  return old;
}
template <typename T>
T atomicExch(T* address, T value) {
  const T old = *address;
  *address = value;
  return old;
}
template <typename T>
T atomicCAS(T* address, T expected, T value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
using std::max;
using std::min;

// The runtime: one emulated device.
using cudaError_t = int;
using cudaStream_t = struct CUstream_st*;
constexpr cudaError_t cudaSuccess = 0;
enum cudaMemcpyKind { cudaMemcpyDefault };
inline const char* cudaGetErrorString(cudaError_t) { return "emulated error"; }
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  mmad_emulator::enqueue(stream, {[=] { std::memset(to, value, bytes); }, nullptr, 0});
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  mmad_emulator::enqueue(stream, {[=] { std::memcpy(to, from, bytes); }, nullptr, 0});
  return cudaSuccess;
}

inline cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*memory != nullptr) std::memset(*memory, 0xA5, bytes);  // nobody may count on what is there
  return *memory == nullptr ? 2 : cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

constexpr unsigned cudaStreamNonBlocking = 1;
constexpr unsigned cudaEventDisableTiming = 2;
using cudaEvent_t = std::shared_ptr<mmad_emulator::Event>*;
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  (*stream)->eager = mmad_emulator::eager_copies();
  mmad_emulator::streams().push_back(*stream);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream != nullptr) mmad_emulator::force(*stream, [=] { return stream->queue.empty(); });
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  cudaStreamSynchronize(stream);
  auto& all = mmad_emulator::streams();
  all.erase(std::find(all.begin(), all.end(), stream));
  delete stream;
  return cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new std::shared_ptr<mmad_emulator::Event>(std::make_shared<mmad_emulator::Event>());
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::shared_ptr<mmad_emulator::Event> shared = *event;
  shared->stream = stream;
  const unsigned long long ticket = ++shared->recorded;
  mmad_emulator::enqueue(stream, {[=] { shared->reached = ticket; }, nullptr, 0});
  return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  mmad_emulator::enqueue(stream, {nullptr, *event, (*event)->recorded});
  return cudaSuccess;
}
