// Packed weights of linear maps: how they lie, and how their numbers become vectors. See hotkernels/linear.py.
//
// A tile is 16 output features. Weights of floats hold, for each k, the tile's 16 numbers. Weights of codes hold blocks:
// 16 scales, 16 minima if the format has them, then runs of 32 k. A run is made of units of 32 bytes, two of each output
// feature: two neighbouring k of int8, or four of 4 bits, of which the two low halves are k and k + 2 and the two high
// ones k + 1 and k + 3. Activations are put in that order, so that codes stay in bytes as they are stored.
#pragma once

#include <cstdlib>

#include "fetch.h"
#include "pool.h"
#include "simd.h"

constexpr int TILE = 16, RUN = 32;
constexpr int V = TILE / W;    // vectors that hold one number of each output feature of a tile
constexpr int UNIT = 2 * TILE; // bytes
enum Kind { FLOAT32, BFLOAT16, FLOAT16, CODES4, CODES8, NONE };

// Filled in by Python, every field in 64 bits.
struct Weight {
  const uint8_t* tiles;
  const float* book; // [16], what 4-bit codes stand for; or null
  int64_t kind, out_features, in_features;
  int64_t block;                    // k that share a scale; each block is filled up to whole runs
  int64_t scale_type, minimum_type; // a Kind of floats, or NONE
  int64_t zero;                     // is subtracted from every code

  int64_t tile_count() const { return (out_features + TILE - 1) / TILE; }
  int64_t runs_a_block() const { return (block + RUN - 1) / RUN; }
  int64_t blocks() const { return (in_features + block - 1) / block; }
  int64_t runs() const { return blocks() * runs_a_block(); }

  // The inputs of a run: fewer than 32 where a block ends.
  struct Inputs {
    int64_t first;
    int count;
  };
  Inputs inputs(int64_t run) const {
    int64_t const k = run % runs_a_block() * RUN, left = block - k;
    return {run / runs_a_block() * block + k, left < RUN ? (int)left : RUN};
  }
};

static inline int float_bytes(int64_t kind) { return kind == FLOAT32 ? 4 : kind == NONE ? 0 : 2; }

// Some blocks of a tile.
struct Blocks {
  const uint8_t* at;
  int64_t count, runs; // runs: of a block
  int64_t scale_type, minimum_type;

  int64_t header() const { return TILE * (float_bytes(scale_type) + float_bytes(minimum_type)); }
};

// What is added to the sums, and where they go; and what is read after the product.
struct Result {
  const float* bias; // or null
  float* y;
  int64_t y_stride;
  const Fetches* next;

  // Shape: sums [rows, 16], of a tile's output features.
  void put(const Weight& weight, int64_t tile, int64_t first_row, int64_t rows, const float* sums) const {
    float* out = y + first_row * y_stride + tile * TILE;
    for (int64_t n = tile * TILE; n < weight.out_features && n < (tile + 1) * TILE; n += W, sums += W, out += W) {
      int const count = weight.out_features - n < W ? (int)(weight.out_features - n) : W;
      vf const added = bias ? load(bias + n, count) : vf{};
      if (count == W) {
        for (int64_t row = 0; row < rows; row++) store(out + row * y_stride, load(sums + row * TILE) + added);
      } else {
        for (int64_t row = 0; row < rows; row++) store(out + row * y_stride, load(sums + row * TILE) + added, count);
      }
    }
  }
};

// Rows are computed in groups of at most `most`, as equal as can be.
struct Groups {
  int64_t rows, count;
  Groups(int64_t rows, int64_t most) : rows(rows), count((rows + most - 1) / most) {}
  int64_t first(int64_t group) const { return group * (rows / count) + (group < rows % count ? group : rows % count); }
  int64_t size(int64_t group) const { return first(group + 1) - first(group); }
  int64_t of(int64_t row) const {
    int64_t const larger = rows % count, size = rows / count, rest = row - larger * (size + 1);
    return rest < 0 ? row / (size + 1) : larger + rest / size;
  }
};

void linear_floats(const Weight& weight, const float* x, int64_t x_stride, int64_t rows, const Result& result);
void linear_codes(const Weight& weight, const float* x, int64_t x_stride, int64_t rows, const Result& result);

// Calls body(first tile, end, row block, fetch) until all are done, on all threads: runs of tiles, many a thread. A tile
// has time to fetch some of `next` in `times` places, all row blocks together. No run is shorter than `shortest`, where
// all threads have one.
template <class F>
static inline void parallel_tiles(int64_t tiles, int64_t row_blocks, const Fetches& next, int64_t times, F&& body,
                                  int64_t shortest = 1) {
  int64_t const threads = num_threads(), wanted = 8 * threads; // tasks, where nobody has to wait long for the last one
  if (shortest * threads > tiles * row_blocks) shortest = (tiles * row_blocks + threads - 1) / threads;
  int64_t const some = tiles * row_blocks / wanted < shortest ? shortest : tiles * row_blocks / wanted;
  int64_t const runs = (tiles + some - 1) / some;
  int64_t const tasks = runs * row_blocks;
  parallel(tasks, [&](int64_t task) {
    int64_t const first = task % runs * some, end = first + some < tiles ? first + some : tiles;
    Fetch fetch = next.share(task, tasks, (end - first) * times / row_blocks);
    body(first, end, task / runs, fetch);
  });
}

// Memory of a thread, kept from call to call. Starts at a cache line.
class Scratch {
 public:
  template <class T> T* get(int64_t count) {
    size_t const bytes = (count * sizeof(T) + 63) / 64 * 64;
    if (bytes > size_) {
      std::free(at_);
      at_ = std::aligned_alloc(64, bytes);
      size_ = bytes;
    }
    return (T*)at_;
  }
  ~Scratch() { std::free(at_); }

 private:
  void* at_ = nullptr;
  size_t size_ = 0;
};

typedef int16_t vs __attribute__((vector_size(4 * W))); // two words a lane
typedef uint16_t vh __attribute__((vector_size(2 * W)));
typedef uint8_t vb __attribute__((vector_size(2 * W)));
typedef int8_t vc __attribute__((vector_size(2 * W)));

template <class T> static inline T load_as(const void* p) { T v; std::memcpy(&v, p, sizeof v); return v; }

// W half words as ints, from byte p on. The compiler's own conversion goes by halves.
static inline vi unsigned_ints(const uint8_t* p) {
#if defined(__AVX512F__)
  return (vi)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (vi)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
#else
  return __builtin_convertvector(load_as<vh>(p), vi);
#endif
}

// W floats of a type, from byte p on.
template <int KIND> static inline vf widen(const uint8_t* p) {
  if constexpr (KIND == FLOAT32) return load_as<vf>(p);
  if constexpr (KIND == BFLOAT16) return from_bits(unsigned_ints(p) << 16);
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  vi const half = unsigned_ints(p), rest = half & 0x7fff;
  vf const finite = from_bits(rest << 13) * all(0x1p112f); // the exponents' biases differ by 112
  vi const infinite = (rest >= 0x7c00) & 0x7f800000;
  return from_bits(bits(finite) | infinite | (half & 0x8000) << 16);
#endif
}

// A float of each output feature of a tile.
struct Floats {
  vf v[V];
  Floats(const uint8_t* p, int64_t kind) {
    for (int i = 0; i < V; i++) {
      if (kind == FLOAT32) v[i] = widen<FLOAT32>(p + i * W * 4);
      else if (kind == FLOAT16) v[i] = widen<FLOAT16>(p + i * W * 2);
      else if (kind == BFLOAT16) v[i] = widen<BFLOAT16>(p + i * W * 2);
      else v[i] = vf{};
    }
  }
};

// Two words of each output feature of a tile.
struct Words {
  vi v[V];
};

// sum + the products of both words.
static inline vi dot(vi sum, vi a, vi b) {
#if defined(__AVX512VNNI__)
  return (vi)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
  return sum + (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return sum + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return sum + (vi)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// The bytes of W lanes as words.
static inline vs unsigned_words(const uint8_t* p) {
#if defined(__AVX512BW__)
  return (vs)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (vs)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p));
#else
  return __builtin_convertvector(load_as<vb>(p), vs);
#endif
}

static inline vs signed_words(const uint8_t* p) {
#if defined(__AVX512BW__)
  return (vs)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (vs)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
#else
  return __builtin_convertvector(load_as<vc>(p), vs);
#endif
}

// How a unit of codes becomes words: `BYTES` of it become `PAIRS` words of each output feature.
struct Decoded {
  static constexpr int PAIRS = 1, BYTES = 2 * UNIT;
  void words(const uint8_t* unit, Words* w) const {
    for (int i = 0; i < V; i++) w->v[i] = load_as<vi>(unit + i * 4 * W);
  }
};

struct Signed8 {
  static constexpr int PAIRS = 1, BYTES = UNIT;
  void words(const uint8_t* unit, Words* w) const {
    for (int i = 0; i < V; i++) w->v[i] = (vi)signed_words(unit + i * 2 * W);
  }
};

struct Unsigned4 {
  static constexpr int PAIRS = 2, BYTES = UNIT;
  void words(const uint8_t* unit, Words* w) const {
    for (int i = 0; i < V; i++) {
      vs const both = unsigned_words(unit + i * 2 * W);
      w[0].v[i] = (vi)(both & 15);
      w[1].v[i] = (vi)(both >> 4);
    }
  }
};

// 4-bit codes that stand for words, rounded from a code book.
struct Book4 {
  static constexpr int PAIRS = 2, BYTES = UNIT;
  static constexpr int BITS = 13; // of words, and of activations: 32 products fit 31 bits
  static constexpr float MOST = (1 << BITS) - 1;
  int16_t word[32] = {}; // the 16 twice, so that a fifth bit does no harm
  float unit = 1;        // of the words

  explicit Book4(const float* book) {
    if (!book) return;
    float most = 0;
    for (int i = 0; i < 16; i++) most = std::fabs(book[i]) > most ? std::fabs(book[i]) : most;
    if (most > 0) unit = most / MOST;
    for (int i = 0; i < 32; i++) word[i] = (int16_t)std::lrint(book[i % 16] / unit);
#if defined(__AVX512BW__)
    table = _mm512_loadu_si512(word);
#elif defined(__AVX2__)
    __m256i const words = _mm256_loadu_si256((const __m256i*)word);
    __m256i const bytes = _mm256_packus_epi16(words & _mm256_set1_epi16(0xff), _mm256_srli_epi16(words, 8));
    lows = _mm256_permute4x64_epi64(bytes, 0x88), highs = _mm256_permute4x64_epi64(bytes, 0xdd);
#endif
  }

#if defined(__AVX512BW__)
  __m512i table;
  void words(const uint8_t* unit, Words* w) const {
    __m512i const both = (__m512i)unsigned_words(unit);
    w[0].v[0] = (vi)_mm512_permutexvar_epi16(both, table);
    w[1].v[0] = (vi)_mm512_permutexvar_epi16(_mm512_srli_epi16(both, 4), table);
  }
#elif defined(__AVX2__)
  __m256i lows, highs; // bytes of the words
  void words(const uint8_t* unit, Words* w) const {
    __m256i const low = _mm256_set1_epi8(15);
    __m256i const both = _mm256_permute4x64_epi64(_mm256_loadu_si256((const __m256i*)unit), 0xd8);
    __m256i const codes[2] = {both & low, _mm256_srli_epi16(both, 4) & low};
    for (int p = 0; p < 2; p++) {
      __m256i const l = _mm256_shuffle_epi8(lows, codes[p]), h = _mm256_shuffle_epi8(highs, codes[p]);
      w[p].v[0] = (vi)_mm256_unpacklo_epi8(l, h);
      w[p].v[1] = (vi)_mm256_unpackhi_epi8(l, h);
    }
  }
#else
  void words(const uint8_t* unit, Words* w) const {
    int16_t out[2][UNIT];
    for (int i = 0; i < UNIT; i++) out[0][i] = word[unit[i] & 15], out[1][i] = word[unit[i] >> 4];
    std::memcpy(w, out, sizeof out);
  }
#endif
};
