#include "cuda/k_center_rows.cuh"

namespace mmad::cuda {

namespace {

constexpr int kCandidates = 16;  // centres kept per row

__global__ void __launch_bounds__(kSelectThreads) key_kernel(Rows rows) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kSelectThreads + threadIdx.x;
  if (row >= rows.operand.rows) return;
  rows.keys[row] = rows.exact[row] < 0.0 ? 0 : key_of(upper_bound(rows, row));
}

__global__ void __launch_bounds__(kSelectThreads) begin_kernel(Rows rows) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kSelectThreads + threadIdx.x;
  if (row >= rows.operand.rows) return;
  rows.exact[row] = kInfinity64;
  rows.state.upper[row] = kInfinity32;
  rows.state.counts[row] = 0;
}

__global__ void __launch_bounds__(kSelectThreads) no_centers_kernel(Operand centers) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kSelectThreads + threadIdx.x;
  if (row < static_cast<std::int64_t>(centers.tiles) * kTileRows) centers.squared[row] = kInfinity32;
}

}  // namespace

template <typename... Parameters, typename... Arguments>
void SelectionRows::launch_for(const char* name, void (*kernel)(Parameters...), std::int64_t count,
                               Arguments&&... arguments) {
  launch(name, kernel, dim3(blocks_for(count, kSelectThreads)), kSelectThreads, 0, stream_, Launch::kPlain,
         arguments...);
}

void SelectionRows::lay_out(Workspace& workspace, const Operand& operand, const float* values, std::int64_t count,
                            const DeviceLimits& limits) {
  const std::size_t n = static_cast<std::size_t>(operand.rows);
  const int dim = operand.dim;
  rows.operand = operand;
  rows.values = values;
  rows.exact = workspace.take<double>(n);
  rows.keys = workspace.take<unsigned long long>(n);
  rows.state.upper = workspace.take<float>(n);
  rows.state.candidates = workspace.take<Candidate>(n * kCandidates);
  rows.state.counts = workspace.take<std::int32_t>(n);
  rows.state.capacity = kCandidates;
  centers.operand = operand_view(workspace.take<char>(operand_bytes(count, dim, false)), count, dim, false);
  chunk_tiles_ = TileStream::chunk_tiles(operand, limits.multiprocessors);
  staged_ = workspace.take<char>(2 * static_cast<std::size_t>(chunk_tiles_) * tile_bytes(dim, false));
}

void SelectionRows::begin(const DeviceLimits& limits, Stream stream) {
  limits_ = limits;
  stream_ = stream;
  tiles_.emplace(rows.operand, staged_, chunk_tiles_, stream_);
  launch_for("k-center begin", begin_kernel, rows.operand.rows, rows);
  operand_begin(centers.operand, stream_);
  launch_for("k-center begin", no_centers_kernel, static_cast<std::int64_t>(centers.operand.tiles) * kTileRows,
             centers.operand);
}

void SelectionRows::set_keys() { launch_for("k-center keys", key_kernel, rows.operand.rows, rows); }

void SelectionRows::meet(std::int64_t first, std::int64_t last) {
  const Operand& all = rows.operand;
  if (all.resident > 0) meet_part(operand_part(all, 0, all.resident, all.values), 0, first, last);
  for (int i = 0; i < tiles_->chunks(); ++i) {
    const TileStream::Chunk chunk = tiles_->acquire();
    meet_part(operand_part(all, chunk.first, chunk.tiles, chunk.values), chunk.first, first, last);
    tiles_->release();
  }
}

// The rows from tile `tile` on.
void SelectionRows::meet_part(const Operand& part, int tile, std::int64_t first, std::int64_t last) {
  const std::int64_t row = static_cast<std::int64_t>(tile) * kTileRows;
  ProductTask task;
  task.queries = part;
  task.bank = centers.operand;
  task.state = rows.state;
  task.state.upper += row;
  task.state.candidates += row * task.state.capacity;
  task.state.counts += row;
  task.first_tile = static_cast<int>(first / kTileRows);
  task.last_tile = tiles_of(last);
  task.first_row = static_cast<int>(first);
  task.resume = true;
  run_product(task, limits_, stream_);
}

}  // namespace mmad::cuda
