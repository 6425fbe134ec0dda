#include "cuda/radix_select.cuh"

namespace mmad::cuda {

namespace {

// The last block's part: walks the bins from the top to the one in which the wanted entry lies.
__device__ void choose_digit(SelectState& state, int pass, int* partial) {
  constexpr int a_thread = kSelectBins / kSelectThreads;
  const int thread = static_cast<int>(threadIdx.x);
  const int top = kSelectBins - 1 - thread * a_thread;  // this thread's bins, from the top down
  volatile int* histogram = state.histogram;
  int sum = 0;
  for (int i = 0; i < a_thread; ++i) sum += histogram[top - i];
  partial[thread] = sum;
  __syncthreads();
  if (thread == 0) {
    int above = 0;
    int chosen = 0;
    while (above + partial[chosen] < state.missing) above += partial[chosen++];
    int bin = kSelectBins - 1 - chosen * a_thread;
    while (above + histogram[bin] < state.missing) above += histogram[bin--];
    state.missing -= above;
    state.done = histogram[bin] == state.missing;  // then all of this bin is taken, whatever its lower digits
    select_extend(state.threshold, pass, bin);
    state.tickets = 0;
  }
  __syncthreads();
  for (int i = 0; i < a_thread; ++i) histogram[top - i] = 0;
}

__global__ void __launch_bounds__(kSelectThreads)
    select_pass_kernel(const unsigned long long* keys, std::int64_t count, int wanted, int pass, SelectState* state) {
  MMAD_DYNAMIC_SHARED(memory);
  int* histogram = reinterpret_cast<int*>(memory);
  int* partial = histogram + kSelectBins;
  int* last = partial + kSelectThreads;
  if (state->done) return;
  const int thread = static_cast<int>(threadIdx.x);
  const SelectEntry prefix = state->threshold;
  for (int i = thread; i < kSelectBins; i += kSelectThreads) histogram[i] = 0;
  __syncthreads();
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kSelectThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kSelectThreads + thread; i < count; i += step) {
    const SelectEntry entry{keys[i], ~static_cast<std::uint32_t>(i)};
    if (entry.key != 0 && select_matches(entry, prefix, pass)) atomicAdd(&histogram[select_digit(entry, pass)], 1);
  }
  __syncthreads();
  for (int i = thread; i < kSelectBins; i += kSelectThreads) {
    if (histogram[i] != 0) atomicAdd(&state->histogram[i], histogram[i]);
  }
  __threadfence();
  __syncthreads();
  if (thread == 0) *last = atomicAdd(&state->tickets, 1u) == gridDim.x - 1;
  __syncthreads();
  if (*last == 0) return;
  __threadfence();
  if (thread == 0 && pass == 0) state->missing = wanted;
  __syncthreads();
  choose_digit(*state, pass, partial);
}

}  // namespace

void run_select(const unsigned long long* keys, std::int64_t count, int wanted, SelectState* state, int blocks,
                cudaStream_t stream) {
  check(cudaMemsetAsync(state, 0, sizeof(SelectState), stream), "select");
  const std::size_t shared = sizeof(int) * (kSelectBins + kSelectThreads + 1);
  for (int pass = 0; pass < kSelectPasses; ++pass) {
    launch("select", select_pass_kernel, dim3(static_cast<unsigned>(blocks)), kSelectThreads, shared, stream,
           Launch::kPlain, keys, count, wanted, pass, state);
  }
}

}  // namespace mmad::cuda
