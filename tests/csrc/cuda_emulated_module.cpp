// The CUDA part of the core, compiled as plain C++ for the CPU (cuda_emulator.hpp), under the same Python bindings.
#define MMAD_CUDA_EMULATOR_MAIN
#include <pybind11/pybind11.h>

#include <set>

#include "cuda_emulator.hpp"
#include "mmad/cuda_device.hpp"

void bind_cuda(pybind11::module_& parent);  // csrc/bindings_cuda.cpp

namespace mmad::cuda {

// A small device, so that tiny problems already split their work over several blocks.
int device_count() { return 1; }
void set_device(int) {}

std::set<void*> locked;
bool page_lock(void* memory, std::size_t) { return locked.insert(memory).second; }
void page_unlock(void* memory) { locked.erase(memory); }
int variable(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoi(value);
}
DeviceLimits device_limits(int) {
  const std::size_t kib = static_cast<std::size_t>(variable("MMAD_EMULATED_SHARED_KIB", 228));
  return {variable("MMAD_EMULATED_MULTIPROCESSORS", 3), (kib - 1) << 10, kib << 10, 9, 0};
}
DeviceLimits current_device_limits() { return device_limits(0); }

}  // namespace mmad::cuda

namespace {

// A stream that works as late as it may, while those that the core makes work as early as they may.
std::uintptr_t late_stream() {
  mmad_emulator::eager_copies() = false;
  CUstream_st* stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  mmad_emulator::eager_copies() = true;
  return reinterpret_cast<std::uintptr_t>(stream);
}

void destroy_stream(std::uintptr_t stream) {
  cudaStreamDestroy(reinterpret_cast<CUstream_st*>(stream));
  mmad_emulator::eager_copies() = false;
}

}  // namespace

PYBIND11_MODULE(_core_emulated, module) {
  bind_cuda(module);
  pybind11::module_ cuda = module.attr("cuda");
  cuda.def("late_stream", &late_stream);
  cuda.def("locked", [] { return mmad::cuda::locked.size(); });
  cuda.def("destroy_stream", &destroy_stream);
}
