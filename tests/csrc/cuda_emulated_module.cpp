// The CUDA part of the core, compiled as plain C++ for the CPU (cuda_emulator.hpp), under the same Python bindings.
#define MMAD_CUDA_EMULATOR_MAIN
#include <pybind11/pybind11.h>

#include "cuda_emulator.hpp"
#include "mmad/cuda_device.hpp"

void bind_cuda(pybind11::module_& parent);  // csrc/bindings_cuda.cpp

namespace mmad::cuda {

// A small device, so that tiny problems already split their work over several blocks.
int device_count() { return 1; }
void set_device(int) {}
DeviceLimits device_limits(int) {
  static const char* large = std::getenv("MMAD_EMULATED_SHARED_KIB");
  const std::size_t kib = large == nullptr ? 228 : static_cast<std::size_t>(std::atoi(large));
  return {3, (kib - 1) << 10, kib << 10, 9, 0};
}
DeviceLimits current_device_limits() { return device_limits(0); }

}  // namespace mmad::cuda

PYBIND11_MODULE(_core_emulated, module) { bind_cuda(module); }
