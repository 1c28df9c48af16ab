// Products of many rows with weights of 8-bit codes, by the processor's own products of tiles of bytes (AMX).
//
// A word of an activation is 256 times a signed byte and an unsigned one: two products of bytes, both exact, make the
// sum of a run, which is therefore the one that linear_codes gets from words; scales are applied in the same order.
#include "linear_bytes.h"

#if defined(__AMX_INT8__) && defined(__linux__)

#include <utility>

#include "rounding.h"
#include "tile_registers.h"

namespace {

constexpr int64_t FEWEST = 9;    // rows that are worth it
constexpr int64_t MOST = 16;     // rows of a tile of activations
constexpr int64_t ROW_BLOCK = 8; // groups that share a decoded tile
constexpr int64_t RUN_BYTES = RUN * TILE;

// The activations of a call, as high and low bytes: [groups, runs, 2, size, 32], a group's last rows perhaps unused.
struct Bytes {
  Groups groups;
  int64_t runs, size; // size: rows of a group
  int8_t* bytes;
  RunScale* scales; // [groups, runs, size]

  const int8_t* of(int64_t group) const { return bytes + group * runs * 2 * size * RUN; }
  const RunScale* scales_of(int64_t group) const { return scales + group * runs * size; }

  void put_row(const Weight& weight, const Rounding& rounding, const float* x, int64_t row) const {
    int64_t const group = groups.of(row), inside = row - groups.first(group);
    RunScale* scale = scales + group * runs * size + inside;
    int8_t* high = bytes + (group * runs * 2 * size + inside) * RUN;
    rounding.row(weight, x, [&](const int16_t* words, const RunScale& of_run) {
      *scale = of_run;
      __m512i const both = _mm512_loadu_si512(words);
      _mm256_storeu_si256((__m256i*)high, _mm512_cvtepi16_epi8(_mm512_srai_epi16(both, 8)));
      _mm256_storeu_si256((__m256i*)(high + size * RUN), _mm512_cvtepi16_epi8(both));
      scale += size, high += 2 * size * RUN;
    });
  }
};

// A tile of a weight: of each run 16 scales, 16 minima and the codes [8, 16, 4] of four k and each output feature.
struct Decoded {
  int64_t runs;
  float* scales;
  float* minima;
  int8_t* codes;

  void fill(const Blocks& from, Fetch& fetch) const {
    const uint8_t* at = from.at;
    __m512i* out = (__m512i*)codes;
    for (int64_t run = 0; run < runs;) {
      Floats const scale(at, from.scale_type), minimum(at + TILE * float_bytes(from.scale_type), from.minimum_type);
      at += from.header();
      for (int64_t i = 0; i < from.runs; i++, run++) {
        fetch.some();
        store(scales + run * TILE, scale.v[0]);
        store(minima + run * TILE, minimum.v[0]);
        for (int k = 0; k < RUN; k += 4, at += 2 * UNIT) // two k each, side by side
          _mm512_store_si512(out++, _mm512_or_si512(wide(at), _mm512_slli_epi32(wide(at + UNIT), 16)));
      }
    }
  }

 private:
  static __m512i wide(const uint8_t* at) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)at)); }
};

// One of two pairs of sums: while one is computed, the other is read.
template <int PAIR> static INLINE void multiply(const int8_t* codes, const int8_t* bytes, int64_t size) {
  _tile_loadd(6, codes, 64);
  _tile_loadd(4, bytes, RUN);
  _tile_loadd(5, bytes + size * RUN, RUN);
  if constexpr (PAIR == 0) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbusd(1, 5, 6);
  } else {
    _tile_zero(2);
    _tile_zero(3);
    _tile_dpbssd(2, 4, 6);
    _tile_dpbusd(3, 5, 6);
  }
}

template <int PAIR> static INLINE void read(int32_t* high, int32_t* low) {
  if constexpr (PAIR == 0) {
    _tile_stored(0, high, 64);
    _tile_stored(1, low, 64);
  } else {
    _tile_stored(2, high, 64);
    _tile_stored(3, low, 64);
  }
}

// The two sums of a run, read from their registers.
template <int S> struct alignas(64) Sums {
  int32_t high[S * TILE], low[S * TILE];
};

template <int S, bool MINIMUM>
static INLINE vf added(vf sum, const Sums<S>& of, int row, vf scale, vf minimum, const RunScale* rows) {
  vi const exact = (load_as<vi>(of.high + row * TILE) << 8) + load_as<vi>(of.low + row * TILE);
  sum = fma(to_float(exact), scale * all(rows[row].scale), sum);
  return MINIMUM ? fma(minimum, all(rows[row].sum), sum) : sum;
}

// sum [S, 16] += the scaled sums of a run.
template <int S, bool MINIMUM, size_t... ROW>
static INLINE void add(vf (&sum)[S], const Sums<S>& of, const float* scales, const float* minima, const RunScale* rows,
                std::index_sequence<ROW...>) {
  vf const scale = load(scales), minimum = load(minima);
  ((sum[ROW] = added<S, MINIMUM>(sum[ROW], of, ROW, scale, minimum, rows)), ...);
}

template <int S, size_t... ROW> static INLINE void store_rows(float* to, const vf (&sum)[S], std::index_sequence<ROW...>) {
  (store(to + ROW * TILE, sum[ROW]), ...);
}

// The product of S rows with a tile, while `next` is fetched. Shape: sums [S, 16].
template <int S, bool MINIMUM>
void product(const Decoded& tile, const int8_t* bytes, const RunScale* scales, float* sums, Fetch& next) {
  constexpr std::make_index_sequence<S> rows;
  Decoded const from = tile;
  Sums<S> even, odd;
  vf sum[S] = {};
  int64_t const last = from.runs - 1, step = 2 * S * RUN;
  asm volatile("" ::: "memory"); // the loads of registers do not say what they read
  multiply<0>(from.codes, bytes, S);
  int64_t run = 0;
  for (; run + 2 <= last; run += 2) {
    next.some();
    multiply<1>(from.codes + (run + 1) * RUN_BYTES, bytes + (run + 1) * step, S);
    read<0>(even.high, even.low);
    add<S, MINIMUM>(sum, even, from.scales + run * TILE, from.minima + run * TILE, scales + run * S, rows);
    multiply<0>(from.codes + (run + 2) * RUN_BYTES, bytes + (run + 2) * step, S);
    read<1>(odd.high, odd.low);
    int64_t const next = run + 1;
    add<S, MINIMUM>(sum, odd, from.scales + next * TILE, from.minima + next * TILE, scales + next * S, rows);
  }
  if (run < last) multiply<1>(from.codes + last * RUN_BYTES, bytes + last * step, S);
  read<0>(even.high, even.low);
  add<S, MINIMUM>(sum, even, from.scales + run * TILE, from.minima + run * TILE, scales + run * S, rows);
  if (run < last) {
    read<1>(odd.high, odd.low);
    add<S, MINIMUM>(sum, odd, from.scales + last * TILE, from.minima + last * TILE, scales + last * S, rows);
  }
  store_rows(sums, sum, rows);
}

using Product = void (*)(const Decoded&, const int8_t*, const RunScale*, float*, Fetch&);

// The product of a group by its size, an even number.
template <size_t... G> Product of_size(int64_t size, bool minimum, std::index_sequence<G...>) {
  static constexpr Product sizes[][2] = {{product<2 * (int)G + 2, false>, product<2 * (int)G + 2, true>}...};
  return sizes[size / 2 - 1][minimum];
}

void all_tiles(const Weight& weight, const Bytes& x, const Result& result) {
  Blocks const tile{weight.tiles, weight.blocks(), weight.runs_a_block(), weight.scale_type, weight.minimum_type};
  int64_t const tile_bytes = tile.count * (tile.header() + tile.runs * RUN_BYTES);
  int64_t const row_blocks = (x.groups.count + ROW_BLOCK - 1) / ROW_BLOCK;
  Product const product_of = of_size(x.size, weight.minimum_type != NONE, std::make_index_sequence<MOST / 2>());
  int64_t const times = x.runs * row_blocks;
  parallel_tiles(weight.tile_count(), row_blocks, *result.next, times,
                 [&](int64_t first, int64_t end, int64_t row_block, Fetch& fetch) {
    static thread_local Scratch scratch;
    static thread_local Fetches following; // the next tile
    float* const floats = scratch.get<float>(x.runs * (2 * TILE + RUN_BYTES / 4));
    Decoded const decoded{x.runs, floats, floats + x.runs * TILE, (int8_t*)(floats + 2 * x.runs * TILE)};
    int64_t const group = row_block * ROW_BLOCK;
    int64_t const end_group = group + ROW_BLOCK < x.groups.count ? group + ROW_BLOCK : x.groups.count;
    int64_t const size = x.size; // of the registers 0 to 3 are sums, 4 and 5 bytes of activations, 6 codes
    TileRegisters const registers({{size, 64}, {size, 64}, {size, 64}, {size, 64}, {size, RUN}, {size, RUN}, {RUN / 4, 64}});
    for (int64_t t = first; t < end; t++) {
      Blocks here = tile;
      here.at += t * tile_bytes;
      decoded.fill(here, fetch);
      following.clear();
      if (t + 1 < end) following.add(here.at + tile_bytes, tile_bytes);
      Fetch next = following.share(0, 1, (end_group - group) * ((x.runs - 1) / 2));
      for (int64_t g = group; g < end_group; g++) {
        alignas(64) float sums[MOST * TILE];
        product_of(decoded, x.of(g), x.scales_of(g), sums, next);
        result.put(weight, t, x.groups.first(g), x.groups.size(g), sums);
      }
    }
  });
}

} // namespace

bool linear_bytes(const Weight& weight, const float* x, int64_t x_stride, int64_t rows, const Result& result) {
  bool const fits = weight.kind == CODES8 && !weight.book && weight.zero == 0;
  if (rows < FEWEST || !fits || !tiles_permitted()) return false;
  static thread_local Scratch bytes, scales;
  Groups const groups(rows, MOST);
  int64_t const runs = weight.runs(), size = ((rows + groups.count - 1) / groups.count + 1) / 2 * 2;
  Bytes const activations{groups, runs, size, bytes.get<int8_t>(groups.count * runs * 2 * size * RUN),
                          scales.get<RunScale>(groups.count * runs * size)};
  Rounding const rounding = Rounding::of(weight, FULL, 1);
  parallel_rows(weight, rows, [&](int64_t row) { activations.put_row(weight, rounding, x + row * x_stride, row); });
  all_tiles(weight, activations, result);
  return true;
}

#else

bool linear_bytes(const Weight&, const float*, int64_t, int64_t, const Result&) { return false; }

#endif
