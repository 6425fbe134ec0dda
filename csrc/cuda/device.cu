// Facts about the devices, asked once.
#include <mutex>
#include <vector>

#include "cuda/device.cuh"
#include "mmad/cuda_device.hpp"

namespace mmad::cuda {

namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "device_limits");
  return value;
}

DeviceLimits ask(int device) {
  DeviceLimits limits;
  limits.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  limits.shared_per_block = static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  limits.shared_per_multiprocessor =
      static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  limits.compute_major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  limits.compute_minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  return limits;
}

}  // namespace

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

void set_device(int device) { check(cudaSetDevice(device), "set_device"); }

bool page_lock(void* memory, std::size_t bytes) {
  if (cudaHostRegister(memory, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped) == cudaSuccess) return true;
  (void)cudaGetLastError();  // it is no error of what comes next
  return false;
}

void page_unlock(void* memory) { check(cudaHostUnregister(memory), "page_unlock"); }

DeviceLimits device_limits(int device) {
  static std::mutex mutex;
  static std::vector<DeviceLimits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if (known.size() <= static_cast<std::size_t>(device)) known.resize(static_cast<std::size_t>(device) + 1);
  DeviceLimits& limits = known[static_cast<std::size_t>(device)];
  if (limits.multiprocessors == 0) limits = ask(device);
  return limits;
}

DeviceLimits current_device_limits() {
  int device = 0;
  check(cudaGetDevice(&device), "current_device_limits");
  return device_limits(device);
}

}  // namespace mmad::cuda
