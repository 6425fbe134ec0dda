// What the CUDA part of the core needs to know of a device.
#pragma once

#include <cstddef>

namespace mmad::cuda {

struct DeviceLimits {
  int multiprocessors = 0;
  std::size_t shared_per_block = 0;  // with the opt-in
  std::size_t shared_per_multiprocessor = 0;
  int compute_major = 0;
  int compute_minor = 0;
};

// How a kernel starts: after what is before it in its stream; so, with all its blocks on the device at a time; or while
// what is before it ends, for kernels that call wait_for_previous and run as compiled for sm_90.
enum class Launch { kPlain, kCooperative, kChained };

// Number of devices that this build's runtime can use; 0 where there is no driver or an older one.
int device_count();

// Makes `device` current for the calling thread. Every function of the CUDA core works on the current device.
void set_device(int device);

// Page-locks host memory in place, for all devices; false where the system does not allow it.
bool page_lock(void* memory, std::size_t bytes);
void page_unlock(void* memory);

DeviceLimits device_limits(int device);
DeviceLimits current_device_limits();

}  // namespace mmad::cuda
