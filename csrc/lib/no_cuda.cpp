// What takes the place of cuda_search.cu in a build without CUDA: there are no devices.
#include "lib/cuda_search.hpp"
#include "lib/failure.hpp"

namespace mmad {
namespace {

[[noreturn]] void refuse() { throw Failure(MMAD_ERROR_DEVICE, "device: this libmmad was built without CUDA"); }

}  // namespace

struct CudaSearch::State {};

int CudaSearch::device_count() { return 0; }
std::int64_t CudaSearch::largest_dim() { return 0; }
CudaSearch::CudaSearch(Matrix<const float>, bool, int) { refuse(); }
CudaSearch::~CudaSearch() = default;
void CudaSearch::search(Matrix<const float>, std::int64_t, float*, std::int64_t*) { refuse(); }
std::int64_t CudaSearch::nbytes() const { return 0; }

}  // namespace mmad
