#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda/device.cuh"
#include "lib/cuda_search.hpp"
#include "lib/failure.hpp"
#include "mmad/cuda_device.hpp"
#include "mmad/cuda_knn.hpp"
#include "mmad/cuda_operand.hpp"
#include "mmad/operand.hpp"

namespace mmad {
namespace {

using cuda::check;

constexpr std::int64_t kQueriesAtOnce = 1 << 16;

// The calling thread's device, for as long as it lives; then the one before again.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    cuda::set_device(device);
  }
  ~OnDevice() { (void)cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

// Device memory that grows; its device must be the current one.
class Memory {
 public:
  Memory() = default;
  ~Memory() { (void)cudaFree(data_); }
  Memory(Memory&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Memory& operator=(Memory&&) = delete;

  template <typename T>
  T* of(std::int64_t count) {
    const std::size_t wanted = std::max<std::size_t>(1, static_cast<std::size_t>(count) * sizeof(T));
    if (wanted > size_) {
      (void)cudaFree(data_);
      data_ = nullptr, size_ = 0;
      if (cudaMalloc(&data_, wanted) != cudaSuccess) {
        (void)cudaGetLastError();  // it is no error of what comes next
        throw Failure(MMAD_ERROR_MEMORY,
                      "out of memory on the CUDA device: " + std::to_string((wanted >> 20) + 1) + " MB wanted");
      }
      size_ = wanted;
    }
    return static_cast<T*>(data_);
  }

  std::size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

// What one search at a time works with.
struct Lane {
  Lane() { check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate"); }
  ~Lane() { (void)cudaStreamDestroy(stream); }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  cudaStream_t stream = nullptr;
  Memory queries, workspace, distances, rows;
};

void copy(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "cudaMemcpyAsync");
}

template <typename Work>
void on_device(int device, const Work& work) {
  try {
    const OnDevice current(device);
    work();
  } catch (const Failure&) {
    throw;
  } catch (const std::runtime_error& error) {
    throw Failure(MMAD_ERROR_DEVICE, "device " + std::to_string(device) + ": " + error.what());
  }
}

}  // namespace

struct CudaSearch::State {
  int device;
  std::int64_t dim;
  cuda::DeviceLimits limits;
  Memory vectors, center, buffer;
  cuda::KnnBank bank;
  std::mutex mutex;
  std::vector<std::unique_ptr<Lane>> idle;

  std::unique_ptr<Lane> take() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (idle.empty()) return std::make_unique<Lane>();
    std::unique_ptr<Lane> lane = std::move(idle.back());
    idle.pop_back();
    return lane;
  }

  void give(std::unique_ptr<Lane> lane) {
    const std::lock_guard<std::mutex> lock(mutex);
    idle.push_back(std::move(lane));
  }

  void search(Lane& lane, const float* queries, std::int64_t count, int k, float* distances, std::int64_t* rows) {
    const auto results = static_cast<std::size_t>(count * k);
    const cuda::KnnPlan plan = cuda::plan_knn(count, bank.operand, k, limits);
    auto* asked = lane.queries.of<float>(count * dim);
    auto* workspace = lane.workspace.of<unsigned char>(static_cast<std::int64_t>(plan.workspace_bytes));
    auto* found = lane.distances.of<float>(count * k);
    auto* numbers = lane.rows.of<std::int64_t>(count * k);
    copy(asked, queries, static_cast<std::size_t>(count * dim) * sizeof(float), lane.stream);
    cuda::knn(asked, count, bank, k, plan, limits, workspace, found, numbers, lane.stream);
    copy(distances, found, results * sizeof(float), lane.stream);
    copy(rows, numbers, results * sizeof(std::int64_t), lane.stream);
    check(cudaStreamSynchronize(lane.stream), "knn");
  }
};

int CudaSearch::device_count() { return cuda::device_count(); }
std::int64_t CudaSearch::largest_dim() { return cuda::kLargestDim; }

CudaSearch::CudaSearch(Matrix<const float> bank, bool int8, int device) : state_(std::make_unique<State>()) {
  State& own = *state_;
  own.device = device;
  own.dim = bank.cols;
  on_device(device, [&] {
    const int dim = static_cast<int>(bank.cols);
    const std::vector<float> center = screening_frame(bank).center;
    own.limits = cuda::device_limits(device);
    auto* vectors = own.vectors.of<float>(bank.rows * bank.cols);
    auto* middle = own.center.of<float>(bank.cols);
    auto* buffer = own.buffer.of<unsigned char>(static_cast<std::int64_t>(cuda::operand_bytes(bank.rows, dim, int8)));
    own.bank = {cuda::operand_view(buffer, bank.rows, dim, int8), vectors, middle};
    auto lane = own.take();
    copy(vectors, bank.data, static_cast<std::size_t>(bank.rows * bank.cols) * sizeof(float), lane->stream);
    copy(middle, center.data(), center.size() * sizeof(float), lane->stream);
    cuda::operand_begin(own.bank.operand, lane->stream);
    cuda::prepare_rows(vectors, bank.rows, bank.cols, middle, own.bank.operand, 0, lane->stream);
    check(cudaStreamSynchronize(lane->stream), "prepare_rows");
    own.give(std::move(lane));
  });
}

CudaSearch::~CudaSearch() {
  try {
    on_device(state_->device, [this] {
      const std::unique_ptr<State> last = std::move(state_);  // its memory goes while its device is the current one
    });
  } catch (const Failure&) {  // the device is gone, and its memory with it
  }
}

void CudaSearch::search(Matrix<const float> queries, std::int64_t k, float* distances, std::int64_t* rows) {
  on_device(state_->device, [&] {
    auto lane = state_->take();
    for (std::int64_t first = 0; first < queries.rows; first += kQueriesAtOnce) {
      const std::int64_t count = std::min(kQueriesAtOnce, queries.rows - first);
      state_->search(*lane, queries.row(first), count, static_cast<int>(k), distances + first * k, rows + first * k);
    }
    state_->give(std::move(lane));
  });
}

std::int64_t CudaSearch::nbytes() const { return static_cast<std::int64_t>(state_->buffer.size()); }

}  // namespace mmad
