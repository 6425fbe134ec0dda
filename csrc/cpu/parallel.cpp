#include "cpu/parallel.hpp"

#include <condition_variable>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mmad {
namespace {

constexpr auto kBetweenPolls = std::chrono::milliseconds(100);
constexpr std::size_t kThreadsOwn = 1 << 20;
constexpr int kSpins = 500;  // some ten microseconds: short loops follow each other quickly

thread_local const std::function<void()>* current_poll = nullptr;

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

long process_id() {
#if defined(__unix__) || defined(__APPLE__)
  return static_cast<long>(getpid());
#else
  return 0;
#endif
}

// A thread's part of a loop is over when `open` falls to zero.
class Countdown {
 public:
  void add() { open_.fetch_add(1, std::memory_order_relaxed); }

  void done() {
    // Under the lock: the one who waits destroys this object as soon as it sees zero.
    const std::lock_guard<std::mutex> lock(mutex_);
    if (open_.fetch_sub(1, std::memory_order_acq_rel) == 1) zero_.notify_all();
  }

  void wait(const std::function<void()>& meanwhile) {
    for (int i = 0; i < kSpins && open_.load(std::memory_order_acquire) != 0; ++i) pause_briefly();
    std::unique_lock<std::mutex> lock(mutex_);
    while (!zero_.wait_for(lock, kBetweenPolls, [this] { return open_.load(std::memory_order_acquire) == 0; })) {
      lock.unlock();
      meanwhile();
      lock.lock();
    }
  }

 private:
  std::atomic<int> open_{0};
  std::mutex mutex_;
  std::condition_variable zero_;
};

struct Job {
  const std::function<void()>* part;
  Countdown* countdown;
};

// A thread that waits for jobs, for as long as the process lives.
class Worker {
 public:
  void start() {
    std::thread([this] { serve(); }).detach();
  }

  void take(Job job) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
      waiting_.store(false, std::memory_order_release);
    }
    wake_.notify_one();
  }

 private:
  void serve() {
    // A thread's first exception, and its first look at a variable of its own, allocate memory that must be there.
    try {
      throw 0;
    } catch (int) {
      current_poll = nullptr;
    }
    while (true) {
      for (int i = 0; i < kSpins && waiting_.load(std::memory_order_acquire); ++i) pause_briefly();
      Job job{};
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return !waiting_.load(std::memory_order_relaxed); });
        job = job_;
        waiting_.store(true, std::memory_order_relaxed);
      }
      (*job.part)();
      job.countdown->done();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<bool> waiting_{true};
  Job job_{};
};

// The idle threads of one process. Never destroyed: they may be waiting when the process ends.
class Crew {
 public:
  explicit Crew(long process) : process_(process) {}
  long process() const { return process_; }

  // At most `wanted` workers: as many as the system gives.
  std::vector<Worker*> hire(int wanted) {
    std::vector<Worker*> hired;
    hired.reserve(static_cast<std::size_t>(wanted));
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(hired.size()) < wanted && !idle_.empty()) {
        hired.push_back(idle_.back());
        idle_.pop_back();
      }
    }
    while (static_cast<int>(hired.size()) < wanted) {
      Worker* one = make_worker();
      if (one == nullptr) break;
      hired.push_back(one);
    }
    return hired;
  }

  void release(const std::vector<Worker*>& workers) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.insert(idle_.end(), workers.begin(), workers.end());  // make_worker() has made room
  }

 private:
  Worker* make_worker() {
    try {
      auto worker = std::make_unique<Worker>();
      ::operator delete(::operator new(kThreadsOwn));  // what the new thread allocates at once must not fail there
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        idle_.reserve(made_ + 1);
        ++made_;  // a thread that is refused leaves room for another, once
      }
      worker->start();
      return worker.release();
    } catch (const std::system_error&) {
      return nullptr;  // the limit of threads, or no room for a stack
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
  }

  const long process_;
  std::mutex mutex_;
  std::vector<Worker*> idle_;
  std::size_t made_ = 0;
};

// A forked child has a copy of its parent's crew but none of the threads, and perhaps a lock that nobody will open: it
// leaves the copy alone and makes its own.
Crew& crew() {
  static std::atomic<Crew*> current{nullptr};
  const long process = process_id();
  Crew* found = current.load(std::memory_order_acquire);
  while (found == nullptr || found->process() != process) {
    auto fresh = std::make_unique<Crew>(process);
    if (current.compare_exchange_strong(found, fresh.get(), std::memory_order_acq_rel)) return *fresh.release();
  }
  return *found;
}

}  // namespace

InterruptScope::InterruptScope(std::function<void()> poll) : poll_(std::move(poll)), outer_(current_poll) {
  current_poll = &poll_;
}

InterruptScope::~InterruptScope() { current_poll = outer_; }

Items::Items(std::int64_t count, std::int64_t chunk) : count_(count), chunk_(chunk), poll_(current_poll) {
  if (poll_ != nullptr) polled_ = std::chrono::steady_clock::now();
}

void Items::check() {
  if (failed_.load(std::memory_order_relaxed)) throw Abandoned{};
  if (poll_ == nullptr || poll_ != current_poll) return;  // only the calling thread has this one
  const auto now = std::chrono::steady_clock::now();
  if (now - polled_ < kBetweenPolls) return;
  polled_ = now;
  (*poll_)();
}

void Items::fail(std::exception_ptr error) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!error_) error_ = std::move(error);
  failed_.store(true, std::memory_order_relaxed);
}

void run_team(int threads, const std::function<void()>& part, const std::function<void()>& meanwhile) {
  Crew& own = crew();
  const std::vector<Worker*> workers = own.hire(threads - 1);
  Countdown countdown;
  for (Worker* worker : workers) {
    countdown.add();
    worker->take({&part, &countdown});
  }
  part();
  countdown.wait(meanwhile);
  own.release(workers);
}

}  // namespace mmad
