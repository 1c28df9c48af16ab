// Keys and values as the cache stores them: float32, bfloat16, float16, or int8 with a scale per slot and head.
#pragma once

#include "stored.h"

constexpr int64_t INT8 = 3; // beside those of stored.h, as hotkernels/attention.py numbers it

typedef int8_t vb __attribute__((vector_size(W)));

static inline vf load(const int8_t* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128((const __m128i*)p))); // as in stored.h
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  vb b;
  std::memcpy(&b, p, sizeof b);
  return to_float(__builtin_convertvector(b, vi));
#endif
}

static inline vf load(const int8_t* p, int n) { int8_t v[W] = {}; std::memcpy(v, p, n); return load(v); }

static inline void narrow(float x, float* p) { *p = x; }

static inline void narrow(float x, bf16* p) { // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  p->bits = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Adding a power of two rounds at the last place of a half. What is finite stays so: at most the largest half.
static inline void narrow(float x, f16* p) {
  constexpr float LARGEST = 65504, INFINITE = INFINITY;
  float const whole = std::fabs(x), size = whole > LARGEST && whole < INFINITE ? LARGEST : whole;
  uint32_t bits, rounded, number;
  std::memcpy(&bits, &x, 4);
  std::memcpy(&number, &size, 4);
  uint32_t const twice = number + number;
  uint32_t const exponent = (twice & 0xff000000) < 0x71000000 ? 0x71000000 : twice & 0xff000000;
  uint32_t const bias = (exponent >> 1) + 0x07800000;
  float add;
  std::memcpy(&add, &bias, 4);
  float const sum = size * 0x1p112f * 0x1p-110f + add; // inf becomes inf on the way
  std::memcpy(&rounded, &sum, 4);
  uint32_t const half = (rounded >> 13 & 0x7c00) + (rounded & 0xfff);
  p->bits = (uint16_t)(bits >> 16 & 0x8000) | (uint16_t)(twice > 0xff000000 ? 0x7e00 : half);
}

template <class T> static inline void store_head(const float* x, int64_t n, T* p, float*) {
  for (int64_t i = 0; i < n; i++) narrow(x[i], p + i);
}

// The scale is NaN where a number is not finite, so that it spoils this head of this slot and no other.
static inline void store_head(const float* x, int64_t n, int8_t* p, float* scale) {
  float most = 0, spoilt = 0;
  for (int64_t i = 0; i < n; i++) {
    float const size = std::fabs(x[i]);
    most = size > most ? size : most;
    spoilt += x[i] * 0.0f;
  }
  float const step = most / 127.0f;
  *scale = step + spoilt;
  bool const empty = !(step > 0) || spoilt != spoilt;
  constexpr float ROUND = 0x1.8p23f; // adding it leaves the nearest integer in the low bits, ties to even
  for (int64_t i = 0; i < n; i++) {
    float const exact = empty ? 0.0f : x[i] / step; // beyond 127 only where the step is too small for a float
    float const code = (exact > 127.0f ? 127.0f : exact < -127.0f ? -127.0f : exact) + ROUND;
    int32_t bits;
    std::memcpy(&bits, &code, 4);
    p[i] = (int8_t)bits;
  }
}
