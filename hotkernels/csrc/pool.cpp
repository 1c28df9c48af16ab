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

// One word says everything that a claim depends on: generation (22 bits), end of the tasks and next task (21 bits each).
constexpr int BITS = 21;
uint64_t pack(uint64_t generation, uint64_t next, uint64_t end) {
  return (generation << 2 * BITS) | (end << BITS) | next;
}
uint64_t next_of(uint64_t word) { return word & ((1ull << BITS) - 1); }
uint64_t end_of(uint64_t word) { return (word >> BITS) & ((1ull << BITS) - 1); }
bool is_empty(uint64_t word) { return next_of(word) >= end_of(word); }

// A thread's own tasks of an op. When they are done it helps with others'.
struct alignas(64) Share {
  std::atomic<uint64_t> word{0};
};

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
    shares_ = std::vector<Share>(threads_);
  }

  int threads() const { return threads_; }
  int64_t first_of(int thread, int64_t count) const { return count * thread / threads_; }

  void run(int64_t count, void (*body)(void*, int64_t), void* context) {
    std::unique_lock<std::mutex> running(run_mutex_, std::try_to_lock);
    if (count < 2 || threads_ < 2 || count >= MAX_TASKS || !running.owns_lock()) {
      for (int64_t i = 0; i < count; i++) body(context, i);
      return;
    }
    start();
    body_ = body, context_ = context, count_ = count;
    done_.store(0, std::memory_order_relaxed);
    generation_ = (generation_ + 1) & 0x3fffff;
    for (int i = 0; i < threads_; i++) // before sleeping_ is read: whoever goes to sleep looks here last
      shares_[i].word.store(pack(generation_, first_of(i, count), first_of(i + 1, count)));
    if (sleeping_.load() > 0) {
      { std::lock_guard<std::mutex> lock(sleep_mutex_); }
      wake_.notify_all();
    }
    work(0);
    auto const deadline = std::chrono::steady_clock::now() + SPIN;
    for (int spins = 0; done_.load(std::memory_order_acquire) < count; spins++) {
      pause();
      if (spins % 64 == 63 && std::chrono::steady_clock::now() > deadline) return wait_done(count);
    }
  }

 private:
  void start() {
    while ((int)workers_.size() + 1 < threads_) {
      int const index = (int)workers_.size() + 1;
      workers_.emplace_back([this, index] { loop(index); });
    }
  }

  void stop() {
    stopping_.store(true);
    { std::lock_guard<std::mutex> lock(sleep_mutex_); }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
    stopping_.store(false);
  }

  // Claim and run tasks until there are none left, one's own first.
  void work(int self) {
    for (int i = 0; i < threads_; i++) work_on(shares_[(self + i) % threads_]);
  }

  // A claim can only succeed while its op is waiting for it, so what is read after it belongs to that op.
  void work_on(Share& share) {
    uint64_t word = share.word.load(std::memory_order_acquire);
    while (!is_empty(word)) {
      if (!share.word.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel)) continue;
      int64_t const count = count_;
      body_(context_, (int64_t)next_of(word));
      if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == count && waiting_.load()) {
        { std::lock_guard<std::mutex> lock(sleep_mutex_); }
        finished_.notify_all();
      }
      word = share.word.load(std::memory_order_acquire);
    }
  }

  bool idle() const {
    for (auto& share : shares_)
      if (!is_empty(share.word.load(std::memory_order_acquire))) return false;
    return true;
  }

  void loop(int self) {
    while (!stopping_.load(std::memory_order_relaxed)) {
      work(self);
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
  int64_t count_ = 0;
  void (*body_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  std::mutex run_mutex_, sleep_mutex_;
  std::condition_variable wake_, finished_;
  std::vector<std::thread> workers_;
  std::atomic<bool> stopping_{false}, waiting_{false};
  std::atomic<int> sleeping_{0};
  std::vector<Share> shares_{1};
  alignas(64) std::atomic<int64_t> done_{0};
};

} // namespace

void run_tasks(int64_t count, void (*body)(void*, int64_t), void* context) { Pool::get().run(count, body, context); }
int num_threads() { return Pool::get().threads(); }
bool begins_thread(int64_t i, int64_t count) {
  Pool const& pool = Pool::get();
  for (int thread = 0; thread < pool.threads(); thread++)
    if (pool.first_of(thread, count) == i) return true;
  return false;
}

EXPORT void set_threads(int n) { Pool::get().set_threads(n); }
EXPORT int get_threads() { return num_threads(); }
