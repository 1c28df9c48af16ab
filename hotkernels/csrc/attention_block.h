// Attention of a block of query rows over one run of positions: what the ops in attention.cpp share out.
//
// Every number here is added up in an order that depends on positions alone: lanes and then halves for a logit, lanes
// of a run for the sum of weights, one position after the other for the values.
#pragma once

#include <algorithm>

#include "attention_cache.h"

constexpr int64_t RUN = 128;  // positions whose softmax is taken at once; runs begin at multiples of it
constexpr int64_t STRIP = 16; // positions that are fetched at once, a multiple of W
constexpr int64_t ROWS = 32;  // query rows that share a fetch

constexpr int64_t padded(int64_t size) { return (size + W - 1) / W * W; }

// The keys of all slots, or their values.
struct Side {
  const void* data;   // [slots, heads, size]
  const float* scale; // [slots, heads], of int8 alone
  int64_t heads, size;

  template <class T> const T* at(int64_t slot, int64_t head) const {
    return static_cast<const T*>(data) + (slot * heads + head) * size;
  }
};

// Positions from .. to of a strip, and their slots: some of one run's keys or values.
struct Part {
  const Side* side;
  const int64_t* slots; // of the strip's first position ..
  int64_t from, to;
};

// Write a strip in floats, [padded(size) / W][STRIP][W], so that neighbours of a product lie together, int8 without its
// scales, which go to `scales`; and ask for another part, which is fetched later.
template <class T> static void fetch(const Part& part, const Part& later, int64_t head, float* strip, float* scales) {
  constexpr int64_t LINE = 64;
  Side const side = *part.side, other = *later.side; // copies, which no store can change
  for (int64_t p = part.from; p < part.to; p++) {
    if (p >= later.from && p < later.to) {
      const char* numbers = reinterpret_cast<const char*>(other.at<T>(later.slots[p], head));
      for (int64_t i = 0; i < other.size * (int64_t)sizeof(T); i += LINE) __builtin_prefetch(numbers + i);
    }
    const T* numbers = side.at<T>(part.slots[p], head);
    if (sizeof(T) == 1) scales[p] = side.scale[part.slots[p] * side.heads + head];
    float* out = strip + p * W;
    int64_t i = 0;
#pragma GCC unroll 4
    for (; i + W <= side.size; i += W, out += STRIP * W) store(out, widen(numbers + i));
    if (i < side.size) store(out, widen(numbers + i, side.size - i));
  }
}

using Fetch = void (*)(const Part&, const Part&, int64_t, float*, float*);
constexpr Fetch FETCH[] = {fetch<float>, fetch<bfloat16>, fetch<float16>, fetch<int8_t>};

// The sum of every vector's lanes.
static inline vf sums(const vf (&a)[W]) {
#if defined(__AVX512F__)
  __m512 four[4];
  for (int i = 0; i < 4; i++) { // a lane of 128 bits: a part of the sums of four vectors
    __m512 const ab = _mm512_add_ps(_mm512_unpacklo_ps(a[4 * i], a[4 * i + 1]), _mm512_unpackhi_ps(a[4 * i], a[4 * i + 1]));
    __m512 const cd = _mm512_add_ps(_mm512_unpacklo_ps(a[4 * i + 2], a[4 * i + 3]), _mm512_unpackhi_ps(a[4 * i + 2], a[4 * i + 3]));
    __m512d const x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
    four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  __m512 const low = _mm512_add_ps(_mm512_shuffle_f32x4(four[0], four[1], 0x44), _mm512_shuffle_f32x4(four[0], four[1], 0xee));
  __m512 const high = _mm512_add_ps(_mm512_shuffle_f32x4(four[2], four[3], 0x44), _mm512_shuffle_f32x4(four[2], four[3], 0xee));
  return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
#elif defined(__AVX2__)
  __m256 const low = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
  __m256 const high = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
#else
  vf s{};
  for (int i = 0; i < W; i++) s[i] = sum(a[i]);
  return s;
#endif
}

// Products of a query with W keys of a strip. Shape: q [size], size a multiple of W.
static inline vf products(const float* q, const float* strip, int64_t size) {
  vf part[W];
  for (int k = 0; k < W; k++) part[k] = vf{};
  for (int64_t i = 0; i < size; i += W, strip += STRIP * W) {
    vf const x = load(q + i);
#pragma GCC unroll 16
    for (int k = 0; k < W; k++) part[k] = fma(x, load(strip + k * W), part[k]);
  }
  return sums(part);
}

// Add a strip's values, weighted: R rows at once, N vectors of each.
template <int R, int N> static inline void add_values(const float* weights, const float* strip, int64_t from, int64_t to, float* out, int64_t out_stride) {
  vf part[R][N];
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) part[r][n] = load(out + r * out_stride + n * W);
  for (int64_t p = from; p < to; p++)
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      vf const weight = all(weights[r * RUN + p]);
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) part[r][n] = fma(weight, load(strip + (n * STRIP + p) * W), part[r][n]);
    }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) store(out + r * out_stride + n * W, part[r][n]);
}

template <int R> static void add_strip(const float* weights, const float* strip, int64_t from, int64_t to, float* out, int64_t size) {
  constexpr int N = R == 1 ? 8 : 4; // enough sums at once to keep the machine busy, and as registers hold
  int64_t i = 0;
  for (; i + N * W <= size; i += N * W) add_values<R, N>(weights, strip + i * STRIP, from, to, out + i, size);
  for (; i + 2 * W <= size; i += 2 * W) add_values<R, 2>(weights, strip + i * STRIP, from, to, out + i, size);
  if (i < size) add_values<R, 1>(weights, strip + i * STRIP, from, to, out + i, size);
}

using AddStrip = void (*)(const float*, const float*, int64_t, int64_t, float*, int64_t);
constexpr AddStrip ADD_STRIP[] = {add_strip<1>, add_strip<2>, add_strip<3>, add_strip<4>};
constexpr int64_t ALIKE = W == 16 ? 4 : 3; // the most of them that registers hold

// Within 3 units in the last place: Cephes' polynomial for small numbers, e^2x for others.
static inline vf tangent(vf x) {
  vf const z = x * x;
  vf p = all(-5.70498872745e-3f);
  p = fma(p, z, all(2.06390887954e-2f));
  p = fma(p, z, all(-5.37397155531e-2f));
  p = fma(p, z, all(1.33314422036e-1f));
  p = fma(p, z, all(-3.33332819422e-1f));
  vf const small = fma(p * z, x, x);
  vf const size = x < vf{} ? -x : x;
  vf const large = all(1.0f) - all(2.0f) / (exp(size + size) + all(1.0f));
  return size < all(0.625f) ? small : x < vf{} ? -large : large;
}

// Lanes first .. last of a vector whose lane 0 is number `at`, the others minus infinity.
static inline vf only(vf x, int64_t at, int64_t first, int64_t last) {
  vi lane;
  for (int i = 0; i < W; i++) lane[i] = i;
  vi const low = vi{} + (int32_t)(first - at), high = vi{} + (int32_t)(last - at);
  return (lane >= low) & (lane < high) ? x : all(-INFINITY);
}

// What a row attended to so far: largest logit, sum of weights e^(logit - largest), and elsewhere the weighted values.
struct Mass {
  float largest = -INFINITY, sum = 0;
};

// Turn positions from .. to of a run's logits into weights. bias is of the run's first position, or null.
static inline Mass weigh(float* logits, int64_t from, int64_t to, float softcap, const float* bias) {
  int64_t const begin = from / W * W;
  vf most = all(-INFINITY), total{};
  for (int64_t i = begin; i < to; i += W) {
    vf x = load(logits + i);
    if (softcap != 0) x = tangent(x / all(softcap)) * all(softcap);
    if (bias != nullptr) x = x + load(bias + i, (int)std::min<int64_t>(to - i, W));
    if (i < from || i + W > to) x = only(x, i, from, to);
    most = max(most, x);
    store(logits + i, x);
  }
  float const top = largest(most);
  vf const shift = all(top == -INFINITY ? 0.0f : top);
  for (int64_t i = begin; i < to; i += W) {
    vf const weight = exp(load(logits + i) - shift);
    total = total + weight;
    store(logits + i, weight);
  }
  return {top, sum(total)};
}

// Put two disjoint sets of positions together; into alone is changed.
static inline void merge(Mass& mass, float* into, const Mass& other, const float* values, int64_t size) {
  float const top = other.largest > mass.largest ? other.largest : mass.largest;
  float const shift = top == -INFINITY ? 0.0f : top;
  vf const ours = exp(all(mass.largest - shift)), theirs = exp(all(other.largest - shift));
  for (int64_t i = 0; i < size; i += W) store(into + i, fma(load(values + i), theirs, load(into + i) * ours));
  mass = {top, mass.sum * ours[0] + other.sum * theirs[0]};
}
