// Vectors of the widest kind that the variant has, and the few functions that the ops build on.
//
// The sources are compiled once per variant, each into a library of its own, so nothing here needs a name per variant.
// Results differ between variants in the last bits, never within one: every op keeps a fixed order of additions per row.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int W = 16; // lanes of a vector of floats
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));

static inline vf load(const float* p) { vf v; std::memcpy(&v, p, sizeof v); return v; }
static inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
static inline vf all(float x) { return x - vf{}; } // broadcast

// The first n lanes (0 <= n <= W); the others are 0 and are not read, or not written.
static inline vf load(const float* p, int n) { vf v{}; std::memcpy(&v, p, sizeof(float) * n); return v; }
static inline void store(float* p, vf v, int n) { std::memcpy(p, &v, sizeof(float) * n); }

// a * b + c, rounded once where the machine can; everything is compiled with -ffp-contract=off, so that it is nowhere else.
static inline vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

static inline vf max(vf a, vf b) { return a > b ? a : b; }
static inline vf min(vf a, vf b) { return a < b ? a : b; }
static inline vi to_int(vf v) { return __builtin_convertvector(v, vi); } // toward zero
static inline vf to_float(vi v) { return __builtin_convertvector(v, vf); }
static inline vi bits(vf v) { return (vi)v; }
static inline vf from_bits(vi v) { return (vf)v; }

// Sum of the lanes, by halves: always the same order.
static inline float sum(vf v) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  __m256 const h = _mm512_castps512_ps256(v) + _mm512_extractf32x8_ps(v, 1);
#else
  __m256 const h = v;
#endif
  __m128 q = _mm256_castps256_ps128(h) + _mm256_extractf128_ps(h, 1);
  q += _mm_movehl_ps(q, q);
  return q[0] + q[1];
#else
  float lane[W];
  store(lane, v);
  for (int n = W / 2; n > 0; n /= 2)
    for (int i = 0; i < n; i++) lane[i] += lane[i + n];
  return lane[0];
#endif
}

static inline float largest(vf v) {
  float lane[W];
  store(lane, v);
  float m = lane[0];
  for (int i = 1; i < W; i++) m = lane[i] > m ? lane[i] : m;
  return m;
}

// e to the power of r, at most half of ln 2 from 0: the polynomial of Cephes' expf.
static inline vf exp_near_0(vf r) {
  vf p = all(1.9875691500e-4f);
  p = fma(p, r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  return fma(p, r * r, r) + all(1.0f);
}

// e to the power of x, within 2 units in the last place; 0 below -87.3 and inf above 88.7.
// Cody and Waite's reduction by ln 2 in two parts.
static inline vf exp(vf x) {
  vf const low = all(-87.33654f), high = all(88.72283f);
  vf const clamped = min(max(x, low), high);
  vf n = clamped * all(1.44269504088896341f);
  n = to_float(to_int(n + (n < vf{} ? all(-0.5f) : all(0.5f))));
  vf r = fma(n, all(-0.693359375f), clamped);
  r = fma(n, all(2.12194440e-4f), r);
  vf y = exp_near_0(r);
  vi half = to_int(n) >> 1, rest = to_int(n) - half; // in two steps: 2^n alone may not be a float
  y = y * from_bits((half + 127) << 23) * from_bits((rest + 127) << 23);
  y = x < low ? vf{} : y;
  y = x > high ? all(INFINITY) : y;
  return x != x ? x : y;
}
