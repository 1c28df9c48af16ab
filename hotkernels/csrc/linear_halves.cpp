// Products of many rows with weights of 4-bit codes, by the processor's own products of tiles of bf16 (AMX).
//
// A word of an activation, times the power of two that it counts, is the sum of two numbers of bf16, its high and its low
// half; a code is one. So a run's sum of products is exact in fp32, in any order, and is the one that linear_codes gets
// from words, with their scale. The weight's scales are applied run by run in the same order as there.
#include "linear_halves.h"

#if defined(__AMX_BF16__) && defined(__linux__)

#include <utility>

#include "rounding.h"
#include "tile_registers.h"

namespace {

constexpr int64_t FEWEST = 7;      // rows that are worth it
constexpr int64_t MOST = 16;       // rows of a group: of a tile of activations
constexpr int64_t ROW_BLOCK = 8;   // most groups of a task
constexpr int64_t TILES = 9;       // of a part: their sums stay in the first cache, beside a chunk's activations and codes
constexpr int CHUNK = 4, REST = 2; // runs of a chunk, and of the last one, perhaps
constexpr int64_t RUN_CODES = RUN * TILE;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The lanes of 16 vectors reduced by two(a, b): lane i of the result is that of v[ORDER[i]].
constexpr int ORDER[MOST] = {0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15};
template <class F> vf reduced(vf (&v)[MOST], F&& two) {
  for (int i = 0; i < 8; i++)
    v[i] = two(_mm512_shuffle_f32x4(v[i], v[i + 8], 0x44), _mm512_shuffle_f32x4(v[i], v[i + 8], 0xee));
  for (int i = 0; i < 4; i++)
    v[i] = two(_mm512_shuffle_f32x4(v[i], v[i + 4], 0x88), _mm512_shuffle_f32x4(v[i], v[i + 4], 0xdd));
  for (int i = 0; i < 2; i++) {
    __m512d const a = _mm512_castps_pd(v[i]), b = _mm512_castps_pd(v[i + 2]);
    v[i] = two(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  return two(_mm512_shuffle_ps(v[0], v[1], 0x88), _mm512_shuffle_ps(v[0], v[1], 0xdd));
}

// The activations of a call, in units: a group's halves of a run [2, size, 32], perhaps with unused rows. Units lie as
// they are read: [chunks, groups, runs of the chunk].
struct Halves {
  Groups groups;
  int64_t runs, size; // runs: even, the last perhaps of zeros; size: rows of a group, even
  uint16_t* numbers;
  float* sums; // of each unit's rows: [size]

  // The first unit of the chunk that begins with run `first`.
  int64_t unit(int64_t first, int64_t group) const {
    return first * groups.count + group * least(runs - first, CHUNK);
  }
  const uint16_t* numbers_of(int64_t unit) const { return numbers + unit * 2 * size * RUN; }
  const float* sums_of(int64_t unit) const { return sums + unit * size; }

  // Rounds a run of a group's rows side by side. x: the group's first row.
  void put(const Weight& weight, const float* x, int64_t x_stride, int64_t group, int64_t run) const {
    int64_t const at = unit(run - run % CHUNK, group) + run % CHUNK, rows = groups.size(group);
    uint16_t* const high = numbers + at * 2 * size * RUN;
    if (run >= weight.runs()) {
      std::memset(high, 0, 2 * size * RUN * sizeof *high);
      std::memset(sums + at * size, 0, size * sizeof *sums);
      return;
    }
    Weight::Inputs const inputs = weight.inputs(run);
    x += inputs.first;
    vf vectors[MOST] = {}, part[2];
    for (int64_t row = 0; row < rows; row++) vectors[ORDER[row]] = from_bits(load_run(x + row * x_stride, inputs.count, part));
    vf const most = reduced(vectors, [](vf a, vf b) { return from_bits(bits(a) > bits(b) ? bits(a) : bits(b)); });
    Step const step = Step::of(most, FULL);
    for (int64_t row = 0; row < rows; row++) {
      load_run(x + row * x_stride, inputs.count, part);
      vectors[ORDER[row]] = put_row(part, all(step.step[row]), all(step.inverse[row]), high + row * RUN);
    }
    store(sums + at * size, reduced(vectors, [](vf a, vf b) { return a + b; }), (int)rows);
  }

 private:
  // Returns the words, scaled, added by lanes.
  vf put_row(const vf (&part)[2], vf step, vf inverse, uint16_t* high) const {
    static constexpr uint16_t UPPER[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                           33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    __m512i const upper = _mm512_loadu_si512(UPPER);
    vf word[2], low[2];
    vi top[2];
    for (int i = 0; i < 2; i++) {
      word[i] = (fma(part[i], inverse, all(SHIFT)) - all(SHIFT)) * step;
      top[i] = bits(word[i]) & (int32_t)0xffff0000;
      low[i] = word[i] - from_bits(top[i]);
    }
    _mm512_storeu_si512(high, _mm512_permutex2var_epi16((__m512i)top[0], upper, (__m512i)top[1]));
    _mm512_storeu_si512(high + size * RUN, _mm512_permutex2var_epi16((__m512i)low[0], upper, (__m512i)low[1]));
    return word[0] + word[1];
  }
};

// A chunk of a tile: codes [runs, 16, 16, 2] of two k and each output feature, scales and minima [runs, 2, 16].
struct Decoded {
  uint16_t* codes;
  float* scales;
};

// A weight of 4-bit codes. At its end may be a run more, of scales 0, so that their number is even.
class Codes4 {
 public:
  static constexpr int64_t PIECES = RUN / 4; // of a run: four k each
  const Weight& weight;
  int64_t const runs;

  // Where a run lies, in bytes from its tile on.
  struct Place {
    int64_t header, codes; // header: or NOTHING
  };
  static int64_t runs_of(const Weight& weight) { return (weight.runs() + 1) / 2 * 2; }

  // Shape: places [runs_of(weight)], filled in here.
  Codes4(const Weight& weight, Place* places)
      : weight(weight),
        runs(runs_of(weight)),
        blocks_{weight.tiles, weight.blocks(), weight.runs_a_block(), weight.scale_type, weight.minimum_type},
        tile_bytes_(blocks_.count * (blocks_.header() + blocks_.runs * RUN_BYTES)),
        places_(places) {
    for (int64_t block = 0, at = 0; block < blocks_.count; block++) {
      int64_t const header = at;
      at += blocks_.header();
      for (int64_t run = 0; run < blocks_.runs; run++, at += RUN_BYTES) *places++ = {header, at};
    }
    if (runs > weight.runs()) *places = {NOTHING, blocks_.header()};
    uint16_t of_code[32];
    for (int code = 0; code < 32; code++) {
      float const value = (float)(code % 16 - weight.zero);
      std::memcpy(&of_code[code], (const char*)&value + 2, 2);
    }
    table_ = _mm512_loadu_si512(of_code);
  }

  const uint8_t* tile(int64_t tile) const { return blocks_.at + tile * tile_bytes_; }

  // Of bf16: what a code stands for, twice, so that a fifth bit does no harm.
  __m512i table() const { return table_; }

  // Decodes pieces `piece` to `end` of a run, and with the first piece the scales. table: as above, in a register.
  INLINE void decode(__m512i table, const uint8_t* tile, int64_t run, int64_t piece, int64_t end, uint16_t* codes,
                     float* scales) const {
    Place const place = places_[run];
    if (piece == 0 && end > 0) put_scales(tile, place.header, scales);
    const uint8_t* const at = tile + place.codes;
    __m512i* const to = (__m512i*)codes;
    for (; piece < end; piece++) {
      __m512i const four = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(at + piece * UNIT)));
      __m512i const first = _mm512_or_si512(four, _mm512_slli_epi32(four, 12));
      __m512i const last = _mm512_or_si512(_mm512_srli_epi32(four, 8), _mm512_slli_epi32(four, 4));
      _mm512_store_si512(to + 2 * piece, _mm512_permutexvar_epi16(first, table));
      _mm512_store_si512(to + 2 * piece + 1, _mm512_permutexvar_epi16(last, table));
    }
  }

 private:
  static constexpr int64_t NOTHING = -1, RUN_BYTES = RUN_CODES / 2;

  void put_scales(const uint8_t* tile, int64_t header, float* out) const {
    if (header == NOTHING) {
      std::memset(out, 0, 2 * TILE * sizeof *out);
      return;
    }
    const uint8_t* const at = tile + header;
    store(out, Floats(at, blocks_.scale_type).v[0]);
    store(out + TILE, Floats(at + TILE * float_bytes(blocks_.scale_type), blocks_.minimum_type).v[0]);
  }

  Blocks blocks_; // of a tile
  int64_t tile_bytes_;
  Place* places_;
  __m512i table_;
};

// What is multiplied, a group's rows with a chunk of a tile; and what is decoded meanwhile.
struct Column {
  Decoded tile;
  const uint16_t* halves = nullptr; // null: nothing is
  const float* row_sums;
  float* sums; // [S, 16]: with those of the chunks before
  const float* sums_before;
  int64_t tile_index, group = -1; // whose sums are complete then; -1: nobody's
  const uint8_t* next_tile;
  int64_t next_run, piece, end = 0; // the first run of the next chunk; pieces of each
  Decoded next;
};

// The product of groups of S rows with tiles in columns of R runs, one after another. Three things go on at once: a unit
// is multiplied, the exact sums of the one before the last are read from their register, and those of the fourth last are
// scaled and added up. So nothing waits for what was just computed.
template <int R, int S, bool MINIMUM> class Product {
 public:
  // next_column(column): fills in what is multiplied next; false where nothing is. put(column): takes complete sums.
  template <class N, class P> static void run(const Codes4& codes, N&& next_column, P&& put) {
    alignas(64) float exact[LAG * SUMS] = {}, nowhere[SUMS + LAG * (2 * TILE + S)] = {};
    Column nothing;
    nothing.sums = nowhere, nothing.sums_before = nowhere;
    nothing.tile.scales = nowhere + SUMS, nothing.row_sums = nowhere + SUMS + LAG * 2 * TILE;
    Column now[COLUMNS], before[COLUMNS];
    for (Column& column : now) column = nothing;
    vf sum[S];
    __m512i const table = codes.table();
    asm volatile("" ::: "memory"); // the loads of registers do not say what they read
    do {
      bool more = true;
      for (int i = 0; i < COLUMNS; i++) {
        before[i] = now[i];
        more = more && next_column(now[i]);
        if (!more) now[i] = nothing;
      }
      units(codes, table, now, before, exact, sum, put, std::make_index_sequence<LAG>());
    } while (now[0].halves);
  }

 private:
  static constexpr int SUMS = S * TILE, LAG = 4, COLUMNS = LAG / R;

  template <class P, size_t... U>
  static INLINE void units(const Codes4& codes, __m512i table, const Column* now, const Column* before, float* exact,
                           vf (&sum)[S], P&& put, std::index_sequence<U...>) {
    (unit<U>(codes, table, now[U / R], before[U / R], exact, sum, put), ...);
  }

  template <int U, class P>
  static INLINE void unit(const Codes4& codes, __m512i table, const Column& now, const Column& before, float* exact,
                          vf (&sum)[S], P&& put) {
    constexpr int run = U % R, read = (U + LAG - 2) % LAG;
    if (now.halves) {
      _tile_loadd(2, now.tile.codes + run * RUN_CODES, 64);
      _tile_loadd(3, now.halves + run * 2 * S * RUN, 64);
      _tile_loadd(4, now.halves + (run * 2 + 1) * S * RUN, 64);
    }
    if constexpr (U % 2 == 0) _tile_stored(0, exact + read * SUMS, 64);
    else _tile_stored(1, exact + read * SUMS, 64);
    if (now.halves) {
      multiply<U % 2>();
      codes.decode(table, now.next_tile, now.next_run + run, now.piece, now.end, now.next.codes + run * RUN_CODES,
                   now.next.scales + run * 2 * TILE);
    }
    add<run>(before, exact + U * SUMS, sum, std::make_index_sequence<S>());
    if (run == R - 1 && before.group >= 0) put(before);
  }

  template <int SUM> static INLINE void multiply() {
    if constexpr (SUM == 0) {
      _tile_zero(0);
      _tile_dpbf16ps(0, 3, 2);
      _tile_dpbf16ps(0, 4, 2);
    } else {
      _tile_zero(1);
      _tile_dpbf16ps(1, 3, 2);
      _tile_dpbf16ps(1, 4, 2);
    }
  }

  template <int RUN_, size_t... ROW>
  static INLINE void add(const Column& of, const float* exact, vf (&sum)[S], std::index_sequence<ROW...>) {
    const float* const scales = of.tile.scales + RUN_ * 2 * TILE;
    vf const scale = load(scales), minimum = load(scales + TILE);
    if constexpr (RUN_ == 0) ((sum[ROW] = load(of.sums_before + ROW * TILE)), ...);
    ((sum[ROW] = fma(load(exact + ROW * TILE), scale, sum[ROW])), ...);
    if constexpr (MINIMUM) ((sum[ROW] = fma(minimum, all(of.row_sums[RUN_ * S + ROW]), sum[ROW])), ...);
    if constexpr (RUN_ == R - 1) (store(of.sums + ROW * TILE, sum[ROW]), ...);
  }
};

// The rows of two groups, or of one, with some tiles. While one tile's chunk is multiplied, the next is decoded.
struct Part {
  const Codes4& codes;
  const Halves& x;
  const Result& result;
  int64_t first_tile, end_tile, group, end_group;
  Fetch &fetch, &next;

  void product() const {
    bool const minimum = codes.weight.minimum_type != NONE;
    if (x.size == 8) minimum ? all_runs<8, true>() : all_runs<8, false>();
    else if (x.size == 10) minimum ? all_runs<10, true>() : all_runs<10, false>();
    else if (x.size == 12) minimum ? all_runs<12, true>() : all_runs<12, false>();
    else if (x.size == 14) minimum ? all_runs<14, true>() : all_runs<14, false>();
    else minimum ? all_runs<16, true>() : all_runs<16, false>();
  }

 private:
  template <int S, bool MINIMUM> void all_runs() const {
    alignas(64) float sums[TILES * 2 * S * TILE];
    int64_t const rest = codes.runs % CHUNK;
    if (codes.runs > rest) some_runs<CHUNK, S, MINIMUM>(0, codes.runs - rest, sums);
    if (rest > 0) some_runs<REST, S, MINIMUM>(codes.runs - rest, codes.runs, sums);
  }

  // Shape: sums [tiles, 2, S, 16].
  template <int R, int S, bool MINIMUM> void some_runs(int64_t run, int64_t end_run, float* sums) const {
    alignas(64) static float const zeros[S * TILE] = {};
    alignas(64) uint16_t decoded[2][R * RUN_CODES];
    alignas(64) float scales[4][R * 2 * TILE]; // what is not scaled yet may be older than what is multiplied
    int64_t place = 0, t = first_tile, g = group;
    auto const at = [&](int64_t place) { return Decoded{decoded[place % 2], scales[place % 4]}; };
    for (int r = 0; r < R; r++)
      codes.decode(codes.table(), codes.tile(t), run + r, 0, Codes4::PIECES, decoded[0] + r * RUN_CODES,
                   scales[0] + r * 2 * TILE);
    int64_t const share = Codes4::PIECES / (end_group - group);
    auto const next_column = [&](Column& column) {
      if (run == end_run) return false;
      if (g == group) next.some(), fetch.some();
      int64_t const unit = x.unit(run, g);
      column.tile = at(place);
      column.halves = x.numbers_of(unit);
      column.row_sums = x.sums_of(unit);
      column.sums = sums + ((t - first_tile) * 2 + g - group) * S * TILE;
      column.sums_before = run == 0 ? zeros : column.sums;
      column.tile_index = t;
      column.group = run + R == codes.runs ? g : -1;
      bool const turn = t + 1 == end_tile, last = turn && run + R == end_run;
      column.next_tile = codes.tile(turn ? first_tile : t + 1);
      column.next_run = turn ? run + R : run;
      column.piece = last ? 0 : (g - group) * share;
      column.end = last ? 0 : column.piece + share;
      column.next = at(place + 1);
      if (++g < end_group) return true;
      g = group, place++;
      if (++t == end_tile) t = first_tile, run += R;
      return true;
    };
    auto const put = [&](const Column& of) {
      result.put(codes.weight, of.tile_index, x.groups.first(of.group), x.groups.size(of.group), of.sums);
    };
    Product<R, S, MINIMUM>::run(codes, next_column, put);
  }
};

void all_tiles(const Codes4& codes, const Halves& x, const Result& result) {
  int64_t const tiles = codes.weight.tile_count(), chunks = (codes.runs + CHUNK - 1) / CHUNK, threads = num_threads();
  // Where there are enough rows, each thread has its own.
  int64_t const own = (x.groups.count + threads - 1) / threads, block = own < 2 ? ROW_BLOCK : least(own, ROW_BLOCK);
  Groups const blocks(x.groups.count, block);
  int64_t const times = blocks.count * ((block + 1) / 2) * chunks;
  parallel_tiles(tiles, blocks.count, *result.next, times, [&](int64_t first, int64_t end, int64_t block, Fetch& fetch) {
    static thread_local Fetches following; // the next part's tiles
    int64_t const first_group = blocks.first(block), end_group = first_group + blocks.size(block);
    TileRegisters const registers({{x.size, 64}, {x.size, 64}, {RUN / 2, 64}, {x.size, 64}, {x.size, 64}});
    Groups const parts(end - first, TILES);
    for (int64_t part = 0; part < parts.count; part++) {
      int64_t const from = first + parts.first(part), to = from + parts.size(part);
      int64_t const until = least(to + parts.size(0), tiles);
      following.clear();
      following.add(codes.tile(to), codes.tile(until) - codes.tile(to));
      Fetch next = following.share(0, 1, (end_group - first_group + 1) / 2 * (to - from) * chunks);
      for (int64_t group = first_group; group < end_group; group += 2)
        Part{codes, x, result, from, to, group, least(group + 2, end_group), fetch, next}.product();
    }
  }, TILES);
}

} // namespace

bool linear_halves(const Weight& weight, const float* x, int64_t x_stride, int64_t rows, const Result& result) {
  bool const fits = weight.kind == CODES4 && !weight.book && weight.zero <= 15;
  if (rows < FEWEST || !fits || !tiles_permitted()) return false;
  static thread_local Scratch places, numbers, sums;
  Codes4 const codes(weight, places.get<Codes4::Place>(Codes4::runs_of(weight)));
  Groups const groups(rows, MOST);
  int64_t const size = ((rows + groups.count - 1) / groups.count + 1) / 2 * 2, units = groups.count * codes.runs;
  Halves const halves{groups, codes.runs, size, numbers.get<uint16_t>(units * 2 * size * RUN),
                      sums.get<float>(units * size)};
  parallel(units / 2, [&](int64_t pair) {
    int64_t const group = 2 * pair / codes.runs, run = 2 * pair % codes.runs;
    const float* const first = x + groups.first(group) * x_stride;
    for (int i = 0; i < 2; i++) halves.put(weight, first, x_stride, group, run + i);
  });
  all_tiles(codes, halves, result);
  return true;
}

#else

bool linear_halves(const Weight&, const float*, int64_t, int64_t, const Result&) { return false; }

#endif
