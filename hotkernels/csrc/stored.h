// Numbers as they are stored: float32, bfloat16 or float16, read into vectors of floats. Both conversions are exact.
#pragma once

#include "simd.h"

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

// How Python names the three; see hotkernels/native.py.
enum Stored : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

typedef uint16_t vh __attribute__((vector_size(2 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));

// The compiler's own conversion goes by halves.
static inline vu widen(const void* p) {
#if defined(__AVX512F__)
  return (vu)_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (vu)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
#else
  vh v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, vu);
#endif
}

static inline vf load(const bf16* p) { return (vf)(widen(p) << 16); }

static inline vf load(const f16* p) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)p)); // unmasked, GCC 12 warns in vain
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  vu const half = widen(p), magnitude = (half & 0x7fff) << 13;
  vf const scaled = (vf)magnitude * all(0x1p112f); // the exponent's bias; makes floats of subnormal halves, too
  vu const infinite = (vu)(magnitude >= (0x7c00u << 13)) & (0xffu << 23);
  return (vf)((vu)scaled | infinite | (half & 0x8000) << 16);
#endif
}

// The first n numbers (0 <= n <= W); the other lanes are 0 and are not read.
static inline vf load(const bf16* p, int n) { bf16 v[W] = {}; std::memcpy(v, p, sizeof(bf16) * n); return load(v); }
static inline vf load(const f16* p, int n) { f16 v[W] = {}; std::memcpy(v, p, sizeof(f16) * n); return load(v); }

// Calls body with a pointer of the stored type.
template <class F> static inline void with_stored(const void* p, int64_t stored, F&& body) {
  if (stored == BFLOAT16) return body(static_cast<const bf16*>(p));
  if (stored == FLOAT16) return body(static_cast<const f16*>(p));
  body(static_cast<const float*>(p));
}
