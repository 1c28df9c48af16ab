// Activations as words of 16 bits with a scale per row and run of 32 k, so that sums of products with codes are exact
// inside a run, in any order; between runs they are added in order, in fp32.
#pragma once

#include <utility>

#include "linear.h"

constexpr int FULL = 15;           // bits of a word with integer codes, beside its sign
constexpr float SHIFT = 0x1.8p23f; // added, it rounds to the nearest whole number, ties to even

// What stands beside the 32 words of a row's run.
struct RunScale {
  float scale, sum; // sum: of the words, scaled
  int32_t start;    // of the sums of products, so that the weight's zero is subtracted
};

// Largest magnitude of the lanes; NaN where there is one.
static inline float largest_magnitude(vi magnitudes) {
#if defined(__AVX512F__)
  int32_t const most = _mm512_reduce_max_epi32((__m512i)magnitudes);
#elif defined(__AVX2__)
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128((__m256i)magnitudes), _mm256_extracti128_si256((__m256i)magnitudes, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  int32_t const most = _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
#else
  int32_t most = 0;
  for (int i = 0; i < W; i++) most = magnitudes[i] > most ? magnitudes[i] : most;
#endif
  float found;
  std::memcpy(&found, &most, sizeof found);
  return found;
}

static inline int32_t total(vi v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)v);
#elif defined(__AVX2__)
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
#else
  int32_t sum = 0;
  for (int i = 0; i < W; i++) sum += v[i];
  return sum;
#endif
}

// Of every four words the first, third, second and last: the order of 4-bit codes.
static inline vh swap_middle(vh v) {
#if defined(__AVX512F__)
  return (vh)_mm256_shufflehi_epi16(_mm256_shufflelo_epi16((__m256i)v, 0xd8), 0xd8);
#elif defined(__AVX2__)
  return (vh)_mm_shufflehi_epi16(_mm_shufflelo_epi16((__m128i)v, 0xd8), 0xd8);
#else
  for (int i = 0; i < W; i += 4) std::swap(v[i + 1], v[i + 2]);
  return v;
#endif
}

// The low words of the lanes.
static inline vh narrow(vi v) {
#if defined(__AVX512F__)
  return (vh)_mm512_cvtepi32_epi16((__m512i)v);
#elif defined(__AVX2__)
  return (vh)_mm_packs_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
#else
  return __builtin_convertvector(v, vh);
#endif
}

// What the words of runs count: a power of two, so that a word times it is a float, whatever is multiplied with it later.
// A lane a run.
struct Step {
  vf step, inverse;

  // The largest word has at most `word_bits` bits beside its sign. Shape: most [W], largest magnitudes or NaN.
  static Step of(vf most, int word_bits) {
    vf const above = fma(most, all(1.0f / (float)(1 << word_bits)), most); // what rounds up to a bit more is the next power
    vi const power = (bits(above) & 0x7f800000) - ((word_bits - 1) << 23);
    vi const some = most > all(1e-25f), finite = most < all(0x1p126f);
    vi const not_a_number = bits(all(NAN));
    return {from_bits((power & some & finite) | (not_a_number & ~finite)),
            from_bits((((254 << 23) - power) & some & finite))};
  }
};

// How the activations of a call are rounded.
struct Rounding {
  int word_bits;
  float unit;   // of a weight's words
  bool swapped; // 4-bit codes
  int32_t zero;

  // How the activations of a product with `weight` are rounded.
  static Rounding of(const Weight& weight, int word_bits, float unit) {
    return {word_bits, unit, weight.kind == CODES4, (int32_t)weight.zero};
  }

  void run(const float* x, int count, int16_t* words, RunScale* scale) const;

  // Calls put(words [32], their scale) for every run of a row, in order.
  template <class F> void row(const Weight& weight, const float* x, F&& put) const {
    for (int64_t run = 0; run < weight.runs(); run++) {
      Weight::Inputs const inputs = weight.inputs(run);
      alignas(64) int16_t words[RUN];
      RunScale scale;
      this->run(x + inputs.first, inputs.count, words, &scale);
      put(words, scale);
    }
  }
};

// The vectors of a run of `count` numbers, the last perhaps of zeros; returns their largest magnitudes.
static inline vi load_run(const float* x, int count, vf (&part)[RUN / W]) {
  vi magnitudes{};
  for (int i = 0; i < RUN / W; i++) {
    int const left = count - i * W;
    part[i] = left >= W ? load(x + i * W) : load(x + i * W, left > 0 ? left : 0);
    vi const magnitude = bits(part[i]) & 0x7fffffff;
    magnitudes = magnitude > magnitudes ? magnitude : magnitudes;
  }
  return magnitudes;
}

inline void Rounding::run(const float* x, int count, int16_t* words, RunScale* scale) const {
  vf part[RUN / W];
  Step const step = Step::of(all(largest_magnitude(load_run(x, count, part))), word_bits);
  vi sum{};
  for (int i = 0; i < RUN / W; i++) {
    vi const rounded = bits(fma(part[i], step.inverse, all(SHIFT))) - bits(all(SHIFT));
    sum += rounded;
    vh const in_order = swapped ? swap_middle(narrow(rounded)) : narrow(rounded);
    std::memcpy(words + i * W, &in_order, sizeof in_order);
  }
  int32_t const added = total(sum);
  scale->scale = step.step[0] * unit;
  scale->sum = (float)added * scale->scale;
  scale->start = (int32_t)(0u - (uint32_t)zero * (uint32_t)added); // unsigned: of NaN it is anything
}

// Calls body(row) for all rows of activations, on all threads.
template <class F> static inline void parallel_rows(const Weight& weight, int64_t rows, F&& body) {
  int64_t const some = 4096 / weight.in_features + 1; // rows worth waking a thread for
  parallel((rows + some - 1) / some, [&](int64_t task) {
    for (int64_t row = task * some; row < rows && row < (task + 1) * some; row++) body(row);
  });
}
