// Keys and values as the cache stores them: float32, bfloat16, float16, or int8 with a scale per slot and head.
#pragma once

#include "simd.h"

enum Stored : int64_t { FLOAT32, BFLOAT16, FLOAT16, INT8 }; // as hotkernels/attention.py numbers them

struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));
typedef int8_t vb __attribute__((vector_size(W)));

static inline vf widen(const float* p) { return load(p); }

static inline vf widen(const bfloat16* p) {
  vh h;
  std::memcpy(&h, p, sizeof h);
#if defined(__AVX512F__)
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#elif defined(__AVX2__)
  return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16);
#else
  return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}

static inline vf widen(const float16* p) {
  vh h;
  std::memcpy(&h, p, sizeof h);
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps((__mmask16)-1, (__m256i)h);
#elif defined(__F16C__)
  return _mm256_cvtph_ps((__m128i)h);
#else
  vu const wide = __builtin_convertvector(h, vu);
  vu const magnitude = (wide & 0x7fff) << 13;
  vu number = (vu)((vf)magnitude * all(0x1p112f)); // moves the exponent's bias, and makes subnormals normal
  number |= (vu)(magnitude >= 0x0f800000) & 0x7f800000; // inf and nan stay so
  return (vf)(number | (wide & 0x8000) << 16);
#endif
}

static inline vf widen(const int8_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  vb b;
  std::memcpy(&b, p, sizeof b);
  return to_float(__builtin_convertvector(b, vi));
#endif
}

// The first n < W numbers, the others 0.
template <class T> static inline vf widen(const T* p, int64_t n) {
  T lane[W] = {};
  std::memcpy((void*)lane, p, sizeof(T) * n);
  return widen(lane);
}

static inline void narrow(float x, float* p) { *p = x; }

static inline void narrow(float x, bfloat16* p) { // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  p->bits = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline void narrow(float x, float16* p) { // adding a power of two rounds at the last place of a half
  uint32_t bits, rounded;
  std::memcpy(&bits, &x, 4);
  uint32_t const twice = bits + bits;
  uint32_t const exponent = (twice & 0xff000000) < 0x71000000 ? 0x71000000 : twice & 0xff000000;
  uint32_t const bias = (exponent >> 1) + 0x07800000;
  float add;
  std::memcpy(&add, &bias, 4);
  float const sum = std::fabs(x) * 0x1p112f * 0x1p-110f + add; // too large a number becomes inf on the way
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
