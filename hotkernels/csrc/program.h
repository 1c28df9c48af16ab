// Ops that a program can call: OP(name) behind an exported function makes it one. See program.cpp.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

// How an op is called with arguments in words of 64 bits, each of which begins with its bytes.
struct Op {
  int64_t count; // of its arguments
  void (*call)(const int64_t* words);
};

template <class T> static inline T from_word(int64_t word) { T v; std::memcpy(&v, &word, sizeof v); return v; }

template <auto F> struct Caller;
template <class... A, void (*F)(A...)> struct Caller<F> {
  template <size_t... I> static void spread(const int64_t* words, std::index_sequence<I...>) { F(from_word<A>(words[I])...); }
  static void call(const int64_t* words) { spread(words, std::index_sequence_for<A...>()); }
  static constexpr Op op{sizeof...(A), call};
};

#define OP(name) \
  extern "C" { __attribute__((visibility("default"))) Op op_##name = Caller<name>::op; }
