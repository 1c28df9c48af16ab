// Attention of a few query rows over some positions of one run: what the ops in attention.cpp are made of.
//
// Every number here is added up in an order that depends on positions alone: lanes and then halves for a logit, lanes
// of a run for the sum of weights, one position after the other for the values.
#pragma once

#include <algorithm>

#include "attention_cache.h"

constexpr int64_t RUN = 128; // positions whose softmax is taken at once; runs begin at multiples of it
constexpr int64_t TILE = 4;  // positions that are multiplied at once, a divisor of W
constexpr int MOST_ROWS = W == 16 ? 4 : 3; // query rows that share a number that was read: what registers hold

constexpr int64_t padded(int64_t size) { return (size + W - 1) / W * W; }

// Keys or values of one head, by position of a run: `size` numbers from data + places[position].
template <class T> struct Lines {
  const T* data;
  int64_t size;
  const int64_t* places;

  const T* operator[](int64_t position) const { return data + places[position]; }
};

// What will be read in the next run, by position like Lines: asked for in time, so that nothing waits for memory. It goes
// to the second cache: the first has no room for a run, and fewer lines on their way at once.
struct Later {
  const char* data;
  int64_t number, size; // bytes of one of the places' numbers, and of a line
  const int64_t* places;
  int64_t from, to;

  // Inlined always: GCC takes a function that only prefetches for one without effect, and leaves its calls out.
  __attribute__((always_inline)) void ask(int64_t position, int64_t count) const {
    constexpr int64_t LINE = 64;
    int64_t const end = std::min(position + count, to);
    for (int64_t p = std::max(position, from); p < end; p++)
      for (int64_t i = 0; i < size; i += LINE) __builtin_prefetch(data + places[p] * number + i, 0, 2);
  }
};

// The sums of the lanes of four vectors, in the same order for each of them.
static inline void store_sums(float* out, const vf (&a)[TILE]) {
#if defined(__AVX512F__)
  __m512 const ab = _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, a[0], a[1]), _mm512_shuffle_ps(a[0], a[1], 0x4e));
  __m512 const cd = _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, a[2], a[3]), _mm512_shuffle_ps(a[2], a[3], 0x4e));
  __m512 const four = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x88), _mm512_shuffle_ps(ab, cd, 0xdd));
  __m256 const two = _mm256_add_ps(_mm512_castps512_ps256(four), _mm512_extractf32x8_ps(four, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1)));
#elif defined(__AVX2__)
  __m256 const ab = _mm256_add_ps(_mm256_blend_ps(a[0], a[1], 0xcc), _mm256_shuffle_ps(a[0], a[1], 0x4e));
  __m256 const cd = _mm256_add_ps(_mm256_blend_ps(a[2], a[3], 0xcc), _mm256_shuffle_ps(a[2], a[3], 0x4e));
  __m256 const two = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x88), _mm256_shuffle_ps(ab, cd, 0xdd));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1)));
#else
  for (int i = 0; i < TILE; i++) out[i] = sum(a[i]);
#endif
}

// Adds to the lanes' sums of R queries and TILE keys what numbers i .. i + W give, or i .. i + rest if that is not 0.
template <class T, int R>
static inline void add_products(vf (&part)[R][TILE], const float* q, int64_t q_stride, const T* const (&key)[TILE], int64_t i,
                                int rest = 0) {
  vf x[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) x[r] = load(q + r * q_stride + i);
#pragma GCC unroll 4
  for (int k = 0; k < TILE; k++) {
    vf const y = rest > 0 ? load(key[k] + i, rest) : load(key[k] + i);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) part[r][k] = fma(x[r], y, part[r][k]);
  }
}

// Products of R queries with the keys of positions from .. to, both multiples of TILE.
// Shape: q [R, q_stride], 0 from keys.size on; logits [R, RUN], by position.
template <class T, int R>
static void multiply(const float* q, int64_t q_stride, Lines<T> keys, int64_t from, int64_t to, float* logits, Later later) {
  for (int64_t p = from; p < to; p += TILE) {
    later.ask(p, TILE);
    const T* key[TILE];
    for (int k = 0; k < TILE; k++) key[k] = keys[p + k];
    vf part[R][TILE];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int k = 0; k < TILE; k++) part[r][k] = vf{};
    int64_t i = 0;
    for (; i + W <= keys.size; i += W) add_products(part, q, q_stride, key, i);
    if (i < keys.size) add_products(part, q, q_stride, key, i, (int)(keys.size - i));
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) store_sums(logits + r * RUN + p, part[r]);
  }
}

// Add N vectors from column on of the values of positions from .. to, weighted; `rest` numbers of a vector if not 0.
// Shape: weights [R, RUN], by position; out [R, out_stride].
template <class T, int R, int N>
static inline void add_columns(const float* weights, const Lines<T>& values, int64_t column, int64_t from, int64_t to,
                               float* out, int64_t out_stride, const Later& later, int rest = 0) {
  vf part[R][N];
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) part[r][n] = load(out + r * out_stride + column + n * W);
  for (int64_t p = from; p < to; p++) {
    if (column == 0) later.ask(p, 1);
    const T* value = values[p] + column;
    vf weight[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) weight[r] = all(weights[r * RUN + p]);
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      vf const y = rest > 0 ? load(value, rest) : load(value + n * W);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) part[r][n] = fma(weight[r], y, part[r][n]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) store(out + r * out_stride + column + n * W, part[r][n]);
}

template <class T, int R>
static void add_values(const float* weights, Lines<T> values, int64_t from, int64_t to, float* out, int64_t out_stride, Later later) {
  constexpr int N = R == 1 ? 8 : 4; // enough sums at once to keep the machine busy, and as registers hold
  int64_t i = 0;
  for (; i + N * W <= values.size; i += N * W)
    add_columns<T, R, N>(weights, values, i, from, to, out, out_stride, later);
  for (; i + W <= values.size; i += W) add_columns<T, R, 1>(weights, values, i, from, to, out, out_stride, later);
  if (i < values.size)
    add_columns<T, R, 1>(weights, values, i, from, to, out, out_stride, later, (int)(values.size - i));
}

// The two by number of rows; AVX2 and less have no four.
template <class T> struct Tiles {
  using Multiply = void (*)(const float*, int64_t, Lines<T>, int64_t, int64_t, float*, Later);
  using AddValues = void (*)(const float*, Lines<T>, int64_t, int64_t, float*, int64_t, Later);
  static constexpr Multiply MULTIPLY[] = {multiply<T, 1>, multiply<T, 2>, multiply<T, 3>, multiply<T, MOST_ROWS>};
  static constexpr AddValues ADD_VALUES[] = {add_values<T, 1>, add_values<T, 2>, add_values<T, 3>, add_values<T, MOST_ROWS>};
};

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

// e to the power of x <= 0, as exp in simd.h but for what larger numbers need: half the work.
static inline vf exp_below_0(vf x) {
  vf const low = all(-87.33654f), round = all(0x1.8p23f); // adding it leaves the nearest integer in the low bits
  vf const clamped = x < low ? low : x;
  vf const shifted = fma(clamped, all(1.44269504088896341f), round), n = shifted - round;
  vf const r = fma(n, all(2.12194440e-4f), fma(n, all(-0.693359375f), clamped));
  vf const y = exp_near_0(r) * from_bits((bits(shifted) << 23) + (127 << 23));
  return x < low ? vf{} : y;
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

// Turn positions from .. to of a run's logits into weights. bias is of the run's first position, and scales of the
// keys and values by position; or null.
static inline Mass weigh(float* logits, int64_t from, int64_t to, float softcap, const float* bias, const float* key_scales,
                         const float* value_scales) {
  int64_t const begin = from / W * W;
  vf most = all(-INFINITY), total{};
  for (int64_t i = begin; i < to; i += W) {
    vf x = load(logits + i);
    if (key_scales != nullptr) x = x * load(key_scales + i);
    if (softcap != 0) x = tangent(x / all(softcap)) * all(softcap);
    if (bias != nullptr) x = x + load(bias + i, (int)std::min<int64_t>(to - i, W));
    if (i < from || i + W > to) x = only(x, i, from, to);
    most = max(most, x);
    store(logits + i, x);
  }
  float const top = largest(most);
  vf const shift = all(top == -INFINITY ? 0.0f : top);
  for (int64_t i = begin; i < to; i += W) {
    vf const weight = exp_below_0(load(logits + i) - shift);
    total = total + weight;
    store(logits + i, value_scales == nullptr ? weight : weight * load(value_scales + i));
  }
  return {top, sum(total)};
}

// Put two disjoint sets of positions together; into alone is changed.
static inline void merge(Mass& mass, float* into, const Mass& other, const float* values, int64_t size) {
  float const top = other.largest > mass.largest ? other.largest : mass.largest;
  float const shift = top == -INFINITY ? 0.0f : top;
  vf const ours = exp_below_0(all(mass.largest - shift)), theirs = exp_below_0(all(other.largest - shift));
  for (int64_t i = 0; i < size; i += W) store(into + i, fma(load(values + i), theirs, load(into + i) * ours));
  mass = {top, mass.sum * ours[0] + other.sum * theirs[0]};
}
