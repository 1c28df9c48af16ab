#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "export.h"

namespace {

constexpr int64_t MAX_TASKS = 1 << 20;
constexpr auto SPIN = std::chrono::microseconds(50);

// One word says everything that a claim depends on: generation (24 bits), tasks (20 bits + 1), next task (20 bits + 1).
constexpr uint64_t NEXT_BITS = 20, COUNT_BITS = 21;
uint64_t pack(uint64_t generation, uint64_t count, uint64_t next) {
  return (generation << (NEXT_BITS + COUNT_BITS + 1)) | (count << (NEXT_BITS + 1)) | next;
}
uint64_t next_of(uint64_t word) { return word & ((1ull << (NEXT_BITS + 1)) - 1); }
uint64_t count_of(uint64_t word) { return (word >> (NEXT_BITS + 1)) & ((1ull << COUNT_BITS) - 1); }

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

class Pool {
 public:
  static Pool& get() {
    static Pool* pool = new Pool; // never destroyed: threads may wait in it while the process ends
    return *pool;
  }

  void set_threads(int n) {
    std::lock_guard<std::mutex> running(run_mutex_);
    stop();
    threads_ = n < 1 ? 1 : n;
  }

  int threads() const { return threads_; }

  void run(int64_t count, void (*body)(void*, int64_t), void* context) {
    std::unique_lock<std::mutex> running(run_mutex_, std::try_to_lock);
    if (count < 2 || threads_ < 2 || count >= MAX_TASKS || !running.owns_lock()) {
      for (int64_t i = 0; i < count; i++) body(context, i);
      return;
    }
    start();
    body_ = body, context_ = context;
    done_.store(0, std::memory_order_relaxed);
    generation_ = (generation_ + 1) & 0x3fffff;
    claim_.store(pack(generation_, count, 0)); // before sleeping_ is read: whoever goes to sleep looks here last
    if (sleeping_.load() > 0) {
      { std::lock_guard<std::mutex> lock(sleep_mutex_); }
      wake_.notify_all();
    }
    work();
    auto const deadline = std::chrono::steady_clock::now() + SPIN;
    for (int spins = 0; done_.load(std::memory_order_acquire) < count; spins++) {
      pause();
      if (spins % 64 == 63 && std::chrono::steady_clock::now() > deadline) return wait_done(count);
    }
  }

 private:
  void start() {
    while ((int)workers_.size() + 1 < threads_) workers_.emplace_back([this] { loop(); });
  }

  void stop() {
    stopping_.store(true);
    { std::lock_guard<std::mutex> lock(sleep_mutex_); }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
    stopping_.store(false);
  }

  // Claim and run tasks until there are none left. A claim can only succeed while its op is waiting for it, so what is
  // read after it belongs to that op.
  void work() {
    uint64_t word = claim_.load(std::memory_order_acquire);
    while (next_of(word) < count_of(word)) {
      if (!claim_.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel)) continue;
      body_(context_, (int64_t)next_of(word));
      if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == (int64_t)count_of(word) && waiting_.load()) {
        { std::lock_guard<std::mutex> lock(sleep_mutex_); }
        finished_.notify_all();
      }
      word = claim_.load(std::memory_order_acquire);
    }
  }

  bool idle() const {
    uint64_t const word = claim_.load(std::memory_order_acquire);
    return next_of(word) >= count_of(word);
  }

  void loop() {
    while (!stopping_.load(std::memory_order_relaxed)) {
      work();
      auto const deadline = std::chrono::steady_clock::now() + SPIN;
      for (int spins = 0; idle() && !stopping_.load(std::memory_order_relaxed); spins++) {
        pause();
        if (spins % 64 == 63 && std::chrono::steady_clock::now() > deadline) sleep();
      }
    }
  }

  void sleep() {
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    sleeping_.fetch_add(1);
    wake_.wait(lock, [this] { return !idle() || stopping_.load(); });
    sleeping_.fetch_sub(1);
  }

  void wait_done(int64_t count) {
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    waiting_.store(true);
    finished_.wait(lock, [&] { return done_.load(std::memory_order_acquire) >= count; });
    waiting_.store(false);
  }

  int threads_ = 1;
  uint64_t generation_ = 0;
  void (*body_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  std::mutex run_mutex_, sleep_mutex_;
  std::condition_variable wake_, finished_;
  std::vector<std::thread> workers_;
  std::atomic<bool> stopping_{false}, waiting_{false};
  std::atomic<int> sleeping_{0};
  alignas(64) std::atomic<uint64_t> claim_{0};
  alignas(64) std::atomic<int64_t> done_{0};
};

} // namespace

void run_tasks(int64_t count, void (*body)(void*, int64_t), void* context) { Pool::get().run(count, body, context); }
int num_threads() { return Pool::get().threads(); }

EXPORT void set_threads(int n) { Pool::get().set_threads(n); }
EXPORT int get_threads() { return num_threads(); }
