// The CUDA part of the core, compiled as plain C++ for the CPU (cuda_emulator.hpp), under the same Python bindings.
#define MMAD_CUDA_EMULATOR_MAIN
#include <pybind11/pybind11.h>

#include "cuda_emulated_device.hpp"

void bind_cuda(pybind11::module_& parent);  // csrc/bindings_cuda.cpp

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
