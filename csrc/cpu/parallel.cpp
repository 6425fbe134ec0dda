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
constexpr auto kSpin = std::chrono::microseconds(200);  // short loops and small searches follow each other quickly
constexpr int kPauses = 16;                             // between two looks at the clock

thread_local const std::function<void()>* current_poll = nullptr;

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Waits awake for a while, as going to sleep and being woken takes long; says whether it has been worth it.
template <typename Ready>
bool spin(const Ready& ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPauses; ++i) {
      if (ready()) return true;
      pause_briefly();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

long process_id() {
#if defined(__unix__) || defined(__APPLE__)
  return static_cast<long>(getpid());
#else
  return 0;
#endif
}

// A thread that runs one part after another, for as long as the process lives. Giving it a part and hearing that it has
// run are a store that the other side is awake to see; only who has gone to sleep is woken through the lock. Whoever goes
// to sleep says so before looking once more, and whoever stores looks afterwards whether the other sleeps: all in one
// order, so one of the two sees the other.
class Worker {
 public:
  void start() {
    std::thread([this] { serve(); }).detach();
  }

  void give(const std::function<void()>* part) {
    part_ = part;
    state_.store(State::given);
    if (sleeps_.load()) {
      const std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_one();
    }
  }

  // Until the part has run. The worker is not destroyed, so it may look at itself after the last word.
  void wait(const std::function<void()>& meanwhile) {
    const auto over = [this] { return state_.load() == State::idle; };
    if (spin(over)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    awaited_.store(true);
    while (!over_.wait_for(lock, kBetweenPolls, over)) {
      lock.unlock();
      meanwhile();
      lock.lock();
    }
    awaited_.store(false);
  }

 private:
  enum class State { idle, given };

  void serve() {
    // A thread's first exception, and its first look at a variable of its own, allocate memory that must be there.
    try {
      throw 0;
    } catch (int) {
      current_poll = nullptr;
    }
    const auto given = [this] { return state_.load() == State::given; };
    while (true) {
      if (!spin(given)) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleeps_.store(true);
        wake_.wait(lock, given);
        sleeps_.store(false);
      }
      (*part_)();
      state_.store(State::idle);
      if (awaited_.load()) {
        const std::lock_guard<std::mutex> lock(mutex_);
        over_.notify_one();
      }
    }
  }

  std::atomic<State> state_{State::idle};
  const std::function<void()>* part_ = nullptr;
  std::atomic<bool> sleeps_{false}, awaited_{false};
  std::mutex mutex_;
  std::condition_variable wake_, over_;
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
  for (Worker* worker : workers) worker->give(&part);
  part();
  for (Worker* worker : workers) worker->wait(meanwhile);
  own.release(workers);
}

}  // namespace mmad
