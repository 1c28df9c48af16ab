// Products with weights of 4- and 8-bit codes. Activations become words of 16 bits with a scale per row and run of 32, so
// that sums of products are exact inside a run, in any order; between runs they are added in order, in fp32.
#include <utility>

#include "linear.h"

namespace {

constexpr int64_t MOST = W == 16 ? 8 : W == 8 ? 6 : 2; // rows of a group: as many as there are registers for
constexpr int64_t ROW_BLOCK = 8;                       // groups that share a tile in the caches
constexpr int64_t CHUNK = 8;                           // runs that are decoded at once: 8 KB
constexpr float FULL = 32767;                          // largest word of an activation with integer codes

// What stands beside the 32 words of a row's run.
struct RunScale {
  float scale, sum; // sum: of the words, scaled
  int32_t start;    // of the sums of products, so that the weight's zero is subtracted
};

// The activations of a call. Those of a group lie together: [runs, 16 pairs of words, rows of the group, 2].
struct Words16 {
  Groups groups;
  int64_t runs;
  int16_t* words;
  RunScale* scales;

  const int16_t* of(int64_t group, int64_t run) const {
    return words + (groups.first(group) * runs + run * groups.size(group)) * RUN;
  }
  const RunScale* scales_of(int64_t group, int64_t run) const {
    return scales + groups.first(group) * runs + run * groups.size(group);
  }
};

// Largest magnitude of the lanes; NaN where there is one.
float largest_magnitude(vi magnitudes) {
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

int32_t total(vi v) {
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
vh swap_middle(vh v) {
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
vh narrow(vi v) {
#if defined(__AVX512F__)
  return (vh)_mm512_cvtepi32_epi16((__m512i)v);
#elif defined(__AVX2__)
  return (vh)_mm_packs_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
#else
  return __builtin_convertvector(v, vh);
#endif
}

// How the activations of a call are rounded.
struct Rounding {
  float range;    // the largest word
  float step;     // times a run's largest magnitude and a weight's scale: what a product of words counts in
  bool swapped;   // 4-bit codes
  int32_t zero;

  void run(const float* x, int count, int16_t* words, RunScale* scale) const;
};

void Rounding::run(const float* x, int count, int16_t* words, RunScale* scale) const {
  constexpr int N = RUN / W;
  vf part[N];
  vi magnitudes{}, sum{};
  for (int i = 0; i < N; i++) {
    int const left = count - i * W;
    part[i] = left >= W ? load(x + i * W) : load(x + i * W, left > 0 ? left : 0);
    vi const magnitude = bits(part[i]) & 0x7fffffff;
    magnitudes = magnitude > magnitudes ? magnitude : magnitudes;
  }
  float const most = largest_magnitude(magnitudes);
  vf const inverse = all(most > 1e-30f ? range / most : 0.0f), shift = all(0x1.8p23f); // rounds to nearest, ties to even
  for (int i = 0; i < N; i++) {
    vi const rounded = bits(fma(part[i], inverse, shift)) - bits(shift);
    sum += rounded;
    vh const in_order = swapped ? swap_middle(narrow(rounded)) : narrow(rounded);
    std::memcpy(words + i * W, &in_order, sizeof in_order);
  }
  int32_t const added = total(sum);
  scale->scale = most * step;
  scale->sum = (float)added * scale->scale;
  scale->start = (int32_t)(0u - (uint32_t)zero * (uint32_t)added); // unsigned: of NaN it is anything
}

void round_row(const Weight& weight, const Rounding& rounding, const float* x, const Words16& into, int64_t row) {
  int64_t const group = into.groups.of(row), rows = into.groups.size(group), of_block = weight.runs_a_block();
  int64_t at = into.groups.first(group) * into.runs, inside = row - into.groups.first(group);
  for (int64_t run = 0; run < into.runs; run++, at += rows) {
    int64_t const k = run % of_block * RUN, left = weight.block - k;
    int16_t words[RUN];
    rounding.run(x + run / of_block * weight.block + k, left < RUN ? (int)left : RUN, words, into.scales + at + inside);
    int16_t* out = into.words + at * RUN + 2 * inside;
    for (int i = 0; i < RUN; i += 2, out += 2 * rows) std::memcpy(out, words + i, 4);
  }
}

// Some blocks of a tile.
struct Blocks {
  const uint8_t* at;
  int64_t count, runs; // runs: of a block
  int64_t scale_type, minimum_type;

  int64_t header() const { return TILE * (float_bytes(scale_type) + float_bytes(minimum_type)); }
};

// sums [G, 16] += the product of G rows with the blocks of a tile.
template <class Code, int G>
void product(Code code, Blocks blocks, const int16_t* words, const RunScale* scales, float* sums, Fetch& fetch) {
  vf sum[G][V];
  for (int g = 0; g < G; g++)
    for (int v = 0; v < V; v++) sum[g][v] = load(sums + g * TILE + v * W);
  const uint8_t* at = blocks.at;
  for (int64_t block = 0; block < blocks.count; block++) {
    Floats const scale(at, blocks.scale_type);
    at += TILE * float_bytes(blocks.scale_type);
    Floats const minimum(at, blocks.minimum_type);
    at += TILE * float_bytes(blocks.minimum_type);
    for (int64_t run = 0; run < blocks.runs; run++, words += G * RUN, scales += G) {
      fetch.some();
      vi exact[G][V];
      for (int g = 0; g < G; g++)
        for (int v = 0; v < V; v++) exact[g][v] = scales[g].start - vi{};
      for (int pair = 0; pair < RUN / 2; pair += Code::PAIRS, at += Code::BYTES) {
        Words w[Code::PAIRS];
        code.words(at, w);
        for (int p = 0; p < Code::PAIRS; p++)
          for (int g = 0; g < G; g++) {
            vi const both = load_as<int32_t>(words + 2 * ((pair + p) * G + g)) - vi{};
            for (int v = 0; v < V; v++) exact[g][v] = dot(exact[g][v], w[p].v[v], both);
          }
      }
      for (int g = 0; g < G; g++)
        for (int v = 0; v < V; v++) sum[g][v] = fma(to_float(exact[g][v]), scale.v[v] * all(scales[g].scale), sum[g][v]);
      if (blocks.minimum_type == NONE) continue;
      for (int g = 0; g < G; g++)
        for (int v = 0; v < V; v++) sum[g][v] = fma(minimum.v[v], all(scales[g].sum), sum[g][v]);
    }
  }
  for (int g = 0; g < G; g++)
    for (int v = 0; v < V; v++) store(sums + g * TILE + v * W, sum[g][v]);
}

template <class Code> using Product = void (*)(Code, Blocks, const int16_t*, const RunScale*, float*, Fetch&);

// The product of a group by its size.
template <class Code, size_t... G> Product<Code> of_size(int64_t rows, std::index_sequence<G...>) {
  static constexpr Product<Code> sizes[] = {product<Code, (int)G + 1>...};
  return sizes[rows - 1];
}

constexpr std::make_index_sequence<MOST> sizes;

// Runs of a tile as words, each with its scales as floats: blocks of one run.
class Chunk {
 public:
  template <class Code> Blocks decode(Code code, const Blocks& from, int64_t first, int64_t count) {
    int64_t const run_bytes = RUN / 2 / Code::PAIRS * Code::BYTES, header = from.header();
    uint8_t* out = bytes_;
    for (int64_t run = first; run < first + count; run++) {
      const uint8_t* block = from.at + run / from.runs * (header + from.runs * run_bytes);
      out = put_floats(out, block, from.scale_type);
      out = put_floats(out, block + TILE * float_bytes(from.scale_type), from.minimum_type);
      const uint8_t* unit = block + header + run % from.runs * run_bytes;
      for (int pair = 0; pair < RUN / 2; pair += Code::PAIRS, unit += Code::BYTES, out += Code::PAIRS * sizeof(Words))
        code.words(unit, (Words*)out);
    }
    return {bytes_, count, 1, FLOAT32, from.minimum_type == NONE ? NONE : FLOAT32};
  }

 private:
  static uint8_t* put_floats(uint8_t* out, const uint8_t* in, int64_t type) {
    if (type == NONE) return out;
    Floats const floats(in, type);
    std::memcpy(out, &floats, sizeof floats);
    return out + sizeof floats;
  }

  alignas(64) uint8_t bytes_[CHUNK * (2 * TILE * 4 + RUN * UNIT)];
};

// The rows of some groups with a tile. Shape: sums [rows, 16].
template <class Code>
void tile_product(const Code& code, const Blocks& tile, const Words16& x, int64_t first_group, int64_t end, float* sums,
                  Fetch& fetch) {
  int64_t const first_row = x.groups.first(first_group);
  bool const cheap = W == 16 || Code::PAIRS == 1; // to decode beside the products, once a group
  if (cheap || x.groups.count == 1) {
    for (int64_t group = first_group; group < end; group++) {
      auto const product_of = of_size<Code>(x.groups.size(group), sizes);
      product_of(code, tile, x.of(group, 0), x.scales_of(group, 0), sums + (x.groups.first(group) - first_row) * TILE,
                 fetch);
    }
    return;
  }
  Chunk chunk;
  for (int64_t run = 0; run < x.runs; run += CHUNK) {
    int64_t const count = x.runs - run < CHUNK ? x.runs - run : CHUNK;
    Blocks const decoded = chunk.decode(code, tile, run, count);
    for (int64_t group = first_group; group < end; group++) {
      auto const product_of = of_size<Decoded>(x.groups.size(group), sizes);
      float* of_group = sums + (x.groups.first(group) - first_row) * TILE;
      product_of(Decoded{}, decoded, x.of(group, run), x.scales_of(group, run), of_group, fetch);
    }
  }
}

template <class Code> void all_tiles(const Code& code, const Weight& weight, const Words16& x, const Result& result) {
  Blocks tile{nullptr, weight.blocks(), weight.runs_a_block(), weight.scale_type, weight.minimum_type};
  int64_t const block_bytes = tile.header() + tile.runs * (RUN / 2 / Code::PAIRS * Code::BYTES);
  int64_t const row_blocks = (x.groups.count + ROW_BLOCK - 1) / ROW_BLOCK;
  int64_t const times = x.groups.count * x.runs;
  parallel_tiles(weight.tile_count(), row_blocks, *result.next, times, [&](int64_t first, int64_t end, int64_t row_block, Fetch& fetch) {
    int64_t const group = row_block * ROW_BLOCK;
    int64_t const end_group = group + ROW_BLOCK < x.groups.count ? group + ROW_BLOCK : x.groups.count;
    int64_t const row = x.groups.first(group), rows = x.groups.first(end_group) - row;
    for (int64_t t = first; t < end; t++) {
      alignas(64) float sums[ROW_BLOCK * MOST * TILE];
      std::memset(sums, 0, sizeof(float) * rows * TILE);
      Blocks here = tile;
      here.at = weight.tiles + t * tile.count * block_bytes;
      tile_product(code, here, x, group, end_group, sums, fetch);
      result.put(weight, t, row, rows, sums);
    }
  });
}

} // namespace

void linear_codes(const Weight& weight, const float* x, int64_t x_stride, int64_t rows, const Result& result) {
  static thread_local Scratch words, scales;
  Groups const groups(rows, MOST);
  Words16 const activations{groups, weight.runs(), words.get<int16_t>(rows * weight.runs() * RUN),
                            scales.get<RunScale>(rows * weight.runs())};
  Book4 const book(weight.book);
  float const range = weight.book ? Book4::MOST : FULL;
  Rounding const rounding{range, book.unit / range, weight.kind == CODES4, (int32_t)weight.zero};
  int64_t const some = 4096 / weight.in_features + 1; // rows worth waking a thread for
  parallel((rows + some - 1) / some, [&](int64_t task) {
    for (int64_t row = task * some; row < rows && row < (task + 1) * some; row++)
      round_row(weight, rounding, x + row * x_stride, activations, row);
  });
  if (weight.kind == CODES8) all_tiles(Signed8{}, weight, activations, result);
  else if (weight.book) all_tiles(book, weight, activations, result);
  else all_tiles(Unsigned4{}, weight, activations, result);
}
