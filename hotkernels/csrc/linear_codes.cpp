// Products with weights of 4- and 8-bit codes and activations rounded to words (rounding.h).
#include <type_traits>
#include <utility>

#include "linear_bytes.h"
#include "linear_halves.h"
#include "rounding.h"

namespace {

constexpr int64_t MOST = W == 16 ? 8 : W == 8 ? 6 : 2; // rows of a group: as many as there are registers for
constexpr int64_t ROW_BLOCK = 8;                       // groups that share a tile in the caches
constexpr int64_t CHUNK = 8;                           // runs that are decoded at once: 8 KB

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

void put_row(const Weight& weight, const Rounding& rounding, const float* x, const Words16& into, int64_t row) {
  int64_t const group = into.groups.of(row), rows = into.groups.size(group);
  int64_t at = into.groups.first(group) * into.runs, inside = row - into.groups.first(group);
  rounding.row(weight, x, [&](const int16_t* words, const RunScale& scale) {
    into.scales[at + inside] = scale;
    int16_t* out = into.words + at * RUN + 2 * inside;
    for (int i = 0; i < RUN; i += 2, out += 2 * rows) std::memcpy(out, words + i, 4);
    at += rows;
  });
}

// sums [G, 16] += the product of G rows with the blocks of a tile.
template <class Code, int G>
void product(Code code, Blocks blocks, const int16_t* words, const RunScale* scales, float* sums, Fetch& fetch) {
  vf sum[G][V];
  for (int g = 0; g < G; g++)
    for (int v = 0; v < V; v++) sum[g][v] = load(sums + g * TILE + v * W);
  const uint8_t* at = blocks.at;
  int64_t const run_bytes = RUN / 2 / Code::PAIRS * Code::BYTES + blocks.header() / blocks.runs;
  for (int64_t block = 0; block < blocks.count; block++) {
    Floats const scale(at, blocks.scale_type);
    at += TILE * float_bytes(blocks.scale_type);
    Floats const minimum(at, blocks.minimum_type);
    at += TILE * float_bytes(blocks.minimum_type);
    for (int64_t run = 0; run < blocks.runs; run++, words += G * RUN, scales += G) {
      fetch.some();
      if (!std::is_same<Code, Decoded>::value) fetch_ahead(at, run_bytes); // the weight itself, not a copy of it
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
      fetch_ahead(unit, run_bytes + header / from.runs);
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
  if (linear_halves(weight, x, x_stride, rows, result) || linear_bytes(weight, x, x_stride, rows, result)) return;
  static thread_local Scratch words, scales;
  Groups const groups(rows, MOST);
  Words16 const activations{groups, weight.runs(), words.get<int16_t>(rows * weight.runs() * RUN),
                            scales.get<RunScale>(rows * weight.runs())};
  Book4 const book(weight.book);
  Rounding const rounding = Rounding::of(weight, weight.book ? Book4::BITS : FULL, book.unit);
  parallel_rows(weight, rows, [&](int64_t row) { put_row(weight, rounding, x + row * x_stride, activations, row); });
  if (weight.kind == CODES8) all_tiles(Signed8{}, weight, activations, result);
  else if (weight.book) all_tiles(book, weight, activations, result);
  else all_tiles(Unsigned4{}, weight, activations, result);
}
