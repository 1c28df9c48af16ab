// Memory that will be read soon, fetched bit by bit while something else is computed.
#pragma once

#include <cstdint>
#include <vector>

constexpr int64_t LINE = 64;    // bytes
constexpr int64_t AHEAD = 4096; // bytes that a stream is asked for before it is read: by itself, beside products, a
                                // processor asks for too little too late

// Asks for `bytes` of a stream that is read at `at`.
static inline void fetch_ahead(const void* at, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += LINE) __builtin_prefetch((const char*)at + AHEAD + i, 0, 3);
}

struct Piece {
  const char* at;
  int64_t lines;
};

// A run of lines of some pieces, a few at a time.
class Fetch {
 public:
  Fetch() = default;
  Fetch(const Piece* piece, int64_t skip, int64_t left, int64_t each) : piece_(piece), left_(left), each_(each) {
    while (skip >= piece_->lines) skip -= (piece_++)->lines;
    line_ = skip;
  }

  void some() {
    int64_t count = each_ < left_ ? each_ : left_;
    left_ -= count;
    while (count > 0) {
      int64_t const rest = piece_->lines - line_, run = count < rest ? count : rest;
      const char* const at = piece_->at + line_ * LINE;
      for (int64_t i = 0; i < run; i++) __builtin_prefetch(at + i * LINE, 0, 2);
      count -= run, line_ += run;
      if (run == rest) piece_++, line_ = 0;
    }
  }

 private:
  const Piece* piece_ = nullptr;
  int64_t line_ = 0, left_ = 0, each_ = 0;
};

// What is to be fetched.
class Fetches {
 public:
  void clear() { pieces_.clear(), lines_ = 0; }
  void add(const void* from, int64_t bytes) {
    int64_t const lines = (bytes + LINE - 1) / LINE;
    if (lines == 0) return;
    pieces_.push_back({(const char*)from, lines});
    lines_ += lines;
  }

  // The share of task `task` of `tasks`, which ask for some `times` times.
  Fetch share(int64_t task, int64_t tasks, int64_t times) const {
    int64_t const first = lines_ * task / tasks, count = lines_ * (task + 1) / tasks - first;
    if (count == 0 || times == 0) return {};
    return {pieces_.data(), first, count, (count + times - 1) / times};
  }

 private:
  std::vector<Piece> pieces_;
  int64_t lines_ = 0;
};
