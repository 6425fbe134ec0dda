// The emulated device, in the place of csrc/cuda/device.cu; for one source of a program, which defines
// MMAD_CUDA_EMULATOR_MAIN.
#pragma once

#include <cstdlib>
#include <set>

#include "cuda_emulator.hpp"
#include "mmad/cuda_device.hpp"

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
