// Threads that share out the tasks of one region after another: what a forward pass has some 40 of, 50 us long each.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace slipway {

inline void breathe() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A ticket is a region's number, its tasks, and the next of them to be taken, in one word. Whoever takes a task learns
// in the same moment whether there was one; while it is not done, the region cannot end and its work stays valid. So a
// thread that slept through regions does no harm, and none waits for it.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int who = 1; who < threads; who++) workers_.emplace_back([this, who] { serve(who); });
  }

  ~Pool() {
    stopping_.store(true);
    ticket_.fetch_add(uint64_t{1} << REGION);
    ticket_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int threads() const { return 1 + (int)workers_.size(); }

  // work(task, who) for each task below `tasks`, on whichever thread is free; `who` is its number.
  template <class Work>
  void run(int tasks, const Work& work) {
    if (workers_.empty() || tasks < 2) {
      for (int task = 0; task < tasks; task++) work(task, 0);
      return;
    }
    call_ = [](const void* work, int task, int who) { (*static_cast<const Work*>(work))(task, who); };
    work_ = &work;
    done_.store(0, std::memory_order_relaxed);
    region_ = (region_ + 1) & 0xffff;
    ticket_.store(region_ << REGION | (uint64_t)tasks << TASKS, std::memory_order_release);
    ticket_.notify_all();
    help(0);
    for (int spins = 0; done_.load(std::memory_order_acquire) < tasks; spins++) {
      if (spins < PATIENCE) breathe();
      else sched_yield();
    }
  }

 private:
  static constexpr int TASKS = 24, REGION = 48;  // bits: 24 for the next task, 24 for their number, 16 for the region
  static constexpr int PATIENCE = 4000;  // some 50 us: between two regions there is less, between two passes more

  static bool open(uint64_t ticket) { return next(ticket) < (int)(ticket >> TASKS & 0xffffff); }
  static int next(uint64_t ticket) { return (int)(ticket & 0xffffff); }

  void help(int who) {
    while (open(ticket_.load(std::memory_order_acquire))) {
      uint64_t taken = ticket_.fetch_add(1, std::memory_order_acq_rel);
      if (!open(taken)) return;
      call_(work_, next(taken), who);
      done_.fetch_add(1, std::memory_order_release);
    }
  }

  void serve(int who) {
    int spins = 0;
    while (!stopping_.load(std::memory_order_relaxed)) {
      uint64_t seen = ticket_.load(std::memory_order_acquire);
      if (open(seen)) {
        help(who);
        spins = 0;
      } else if (++spins < PATIENCE) {
        breathe();
      } else {
        ticket_.wait(seen);
        spins = 0;
      }
    }
  }

  std::vector<std::thread> workers_;
  void (*call_)(const void*, int, int) = nullptr;
  const void* work_ = nullptr;
  uint64_t region_ = 0;
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int> done_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace slipway
