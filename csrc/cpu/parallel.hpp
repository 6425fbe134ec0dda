// Loops shared by several threads.
//
// Not OpenMP, for three reasons: an exception in one of its regions ends the process, as does a thread that the system
// refuses; its threads are gone in a forked child, which then waits for them for ever; and thread sanitizers do not
// understand its barriers. Here the first exception of any thread reaches the caller, missing threads only make the work
// slower, and a child that uses the core after fork() starts with threads of its own.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>

#include "mmad/interrupt.hpp"

namespace mmad {

// The items 0 .. count of one loop, handed out in chunks to whoever asks.
class Items {
 public:
  Items(std::int64_t count, std::int64_t chunk);

  // Visits items until none is left or another thread has failed.
  template <typename Visit>
  void each(const Visit& visit) {
    while (!failed_.load(std::memory_order_relaxed)) {
      const std::int64_t from = next_.fetch_add(chunk_, std::memory_order_relaxed);
      if (from >= count_) return;
      for (std::int64_t i = from; i < std::min(count_, from + chunk_); ++i) visit(i);
      check();
    }
  }

  // For long items, to be called now and then: throws where another thread has failed or the caller is interrupted.
  void check();

  // Runs a thread's part and keeps the first exception of all.
  template <typename Body>
  void run(const Body& body) noexcept {
    try {
      body(*this);
    } catch (const Abandoned&) {
    } catch (...) {
      fail(std::current_exception());
    }
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  struct Abandoned {};
  void fail(std::exception_ptr error) noexcept;

  const std::int64_t count_, chunk_;
  std::atomic<std::int64_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::exception_ptr error_;
  const std::function<void()>* poll_;  // of the calling thread
  std::chrono::steady_clock::time_point polled_;
};

// Runs `part` on the calling thread and up to threads - 1 others, and waits for all of them; the calling thread runs
// `meanwhile` now and then until the last has finished. Neither may throw.
void run_team(int threads, const std::function<void()>& part, const std::function<void()>& meanwhile);

// body(items) on every thread, where it calls items.each(visit) once; what it keeps across items is the thread's own.
// Returns when all items were visited, or throws the first exception.
template <typename Body>
void parallel(int threads, std::int64_t count, std::int64_t chunk, const Body& body) {
  if (count <= 0) return;
  Items items(count, chunk);
  const std::int64_t chunks = (count + chunk - 1) / chunk;
  const int useful = static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), chunks));
  if (useful == 1) {
    items.run(body);
  } else {
    run_team(useful, [&] { items.run(body); }, [&] { items.run([](Items& all) { all.check(); }); });
  }
  items.rethrow();
}

// A chunk that gives every thread one share of items of equal cost.
inline std::int64_t equal_chunk(std::int64_t count, int threads) {
  return std::max<std::int64_t>(1, (count + threads - 1) / std::max(threads, 1));
}

}  // namespace mmad
