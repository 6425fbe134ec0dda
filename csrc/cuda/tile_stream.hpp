// Brings the values of an operand's tiles that lie in host memory to the device, a chunk at a time and round and round:
// while one of two buffers is worked on, the other is filled on a stream of its own.
#pragma once

#include <algorithm>

#include "cuda/device.cuh"
#include "mmad/cuda_operand.hpp"

namespace mmad::cuda {

class TileStream {
 public:
  struct Chunk {
    int first;  // tile of the operand
    int tiles;
    void* values;
  };

  // Tiles of one of the two buffers: enough blocks to fill the device a few times over.
  static int chunk_tiles(const Operand& operand, int multiprocessors) {
    return std::min(operand.tiles - operand.resident, 4 * multiprocessors);
  }

  // `buffers` holds two chunks. The tiles in host memory are there when what `compute` has been given so far is done.
  TileStream(const Operand& operand, void* buffers, int chunk_tiles, Stream compute)
      : operand_(operand), buffers_(static_cast<char*>(buffers)), chunk_tiles_(chunk_tiles), compute_(compute) {
    const int streamed = operand.tiles - operand.resident;
    chunks_ = chunk_tiles > 0 ? (streamed + chunk_tiles - 1) / chunk_tiles : 0;
    if (chunks_ == 0) return;
    // Not ordered with the legacy default stream, which PyTorch computes on unless told otherwise.
    check(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), "tile stream");
    for (int slot = 0; slot < 2; ++slot) {
      check(cudaEventCreateWithFlags(&filled_[slot], cudaEventDisableTiming), "tile stream");
      check(cudaEventCreateWithFlags(&consumed_[slot], cudaEventDisableTiming), "tile stream");
      check(cudaEventRecord(consumed_[slot], compute_), "tile stream");
    }
    start_copy();
    start_copy();
  }

  TileStream(const TileStream&) = delete;
  TileStream& operator=(const TileStream&) = delete;

  ~TileStream() {  // errors have been, or will be, seen on the other stream
    if (copies_ == nullptr) return;
    (void)cudaStreamSynchronize(copies_);
    for (int slot = 0; slot < 2; ++slot) {
      if (filled_[slot] != nullptr) (void)cudaEventDestroy(filled_[slot]);
      if (consumed_[slot] != nullptr) (void)cudaEventDestroy(consumed_[slot]);
    }
    (void)cudaStreamDestroy(copies_);
  }

  // Chunks of one round through all streamed tiles; every round starts at the first.
  int chunks() const { return chunks_; }

  // The next chunk; work that is queued on `compute` from here on finds it in its buffer.
  Chunk acquire() {
    check(cudaStreamWaitEvent(compute_, filled_[used_ % 2], 0), "tile stream");
    return chunk(used_);
  }

  // The work on the chunk has been queued: its buffer may be filled again once that is done.
  void release() {
    check(cudaEventRecord(consumed_[used_ % 2], compute_), "tile stream");
    ++used_;
    start_copy();
  }

 private:
  std::size_t bytes_of(int tiles) const {
    return static_cast<std::size_t>(tiles) * tile_bytes(operand_.dim, operand_.int8);
  }

  Chunk chunk(long long number) const {
    const int offset = static_cast<int>(number % chunks_) * chunk_tiles_;
    const int tiles = std::min(chunk_tiles_, operand_.tiles - operand_.resident - offset);
    return {operand_.resident + offset, tiles,
            buffers_ + static_cast<std::size_t>(number % 2) * bytes_of(chunk_tiles_)};
  }

  void start_copy() {
    const int slot = static_cast<int>(copied_ % 2);
    const Chunk next = chunk(copied_++);
    check(cudaStreamWaitEvent(copies_, consumed_[slot], 0), "tile stream");
    check(cudaMemcpyAsync(next.values, tile_values(operand_, next.first), bytes_of(next.tiles), cudaMemcpyDefault,
                          copies_),
          "tile stream");
    check(cudaEventRecord(filled_[slot], copies_), "tile stream");
  }

  Operand operand_;
  char* buffers_;
  int chunk_tiles_;
  int chunks_ = 0;
  long long copied_ = 0;  // chunks whose copy has been queued
  long long used_ = 0;    // chunks that have been released
  Stream compute_;
  cudaStream_t copies_ = nullptr;
  cudaEvent_t filled_[2] = {};
  cudaEvent_t consumed_[2] = {};
};

}  // namespace mmad::cuda
