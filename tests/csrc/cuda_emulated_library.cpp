// The device that libmmad finds where its CUDA part is compiled as plain C++ (target mmad_emulated).
#define MMAD_CUDA_EMULATOR_MAIN
#include "cuda_emulated_device.hpp"
