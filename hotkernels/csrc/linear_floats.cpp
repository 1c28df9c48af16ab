// Products with weights of floats: for every row and output feature one sum in fp32, over k in order.
#include <utility>

#include "linear.h"

namespace {

constexpr int64_t MOST = W == 16 ? 12 : W == 8 ? 6 : 2; // rows of a group: as many as there are registers for
constexpr int64_t ROW_BLOCK = 8;                        // groups that share a piece of a tile in the first cache
constexpr int64_t CHUNK = 256;                          // k of such a piece
constexpr int64_t FETCHED = 32;                         // k between fetches

// The activations of a call. Those of a group lie together: [k, rows of the group].
struct Rows {
  Groups groups;
  int64_t in_features;
  const float* x;

  const float* of(int64_t group, int64_t k) const {
    return x + groups.first(group) * in_features + k * groups.size(group);
  }
};

// sums [G, 16] += the product of G rows with a piece of a tile.
template <int KIND, int G> void product(const uint8_t* w, const float* x, int64_t count, float* sums, Fetch& fetch) {
  vf sum[G][V];
  for (int g = 0; g < G; g++)
    for (int v = 0; v < V; v++) sum[g][v] = load(sums + g * TILE + v * W);
  constexpr int BYTES = KIND == FLOAT32 ? 4 : 2;
  for (int64_t k = 0; k < count; k++, w += TILE * BYTES, x += G) {
    if (k % FETCHED == 0) fetch.some(), fetch_ahead(w, FETCHED * TILE * BYTES);
    vf number[V];
    for (int v = 0; v < V; v++) number[v] = widen<KIND>(w + v * W * BYTES);
    for (int g = 0; g < G; g++)
      for (int v = 0; v < V; v++) sum[g][v] = fma(number[v], all(x[g]), sum[g][v]);
  }
  for (int g = 0; g < G; g++)
    for (int v = 0; v < V; v++) store(sums + g * TILE + v * W, sum[g][v]);
}

using Product = void (*)(const uint8_t*, const float*, int64_t, float*, Fetch&);

template <int KIND, size_t... G> Product of_size(int64_t rows, std::index_sequence<G...>) {
  static constexpr Product sizes[] = {product<KIND, (int)G + 1>...};
  return sizes[rows - 1];
}

template <int KIND> void all_tiles(const Weight& weight, const Rows& x, const Result& result) {
  int64_t const k_bytes = TILE * float_bytes(KIND);
  int64_t const row_blocks = (x.groups.count + ROW_BLOCK - 1) / ROW_BLOCK;
  int64_t const times = x.groups.count * ((weight.in_features + FETCHED - 1) / FETCHED);
  parallel_tiles(weight.tile_count(), row_blocks, *result.next, times, [&](int64_t first, int64_t end, int64_t row_block, Fetch& fetch) {
    int64_t const first_group = row_block * ROW_BLOCK;
    int64_t const end_group = first_group + ROW_BLOCK < x.groups.count ? first_group + ROW_BLOCK : x.groups.count;
    int64_t const row = x.groups.first(first_group), rows = x.groups.first(end_group) - row;
    for (int64_t t = first; t < end; t++) {
      const uint8_t* tile = weight.tiles + t * weight.in_features * k_bytes;
      alignas(64) float sums[ROW_BLOCK * MOST * TILE];
      std::memset(sums, 0, sizeof(float) * rows * TILE);
      for (int64_t k = 0; k < weight.in_features; k += CHUNK) {
        int64_t const count = weight.in_features - k < CHUNK ? weight.in_features - k : CHUNK;
        for (int64_t group = first_group; group < end_group; group++) {
          auto const product_of = of_size<KIND>(x.groups.size(group), std::make_index_sequence<MOST>());
          product_of(tile + k * k_bytes, x.of(group, k), count, sums + (x.groups.first(group) - row) * TILE, fetch);
        }
      }
      result.put(weight, t, row, rows, sums);
    }
  });
}

// Shape: in [rows of the group], out [k, rows].
void interleave(const float* in, int64_t stride, int64_t rows, int64_t count, float* out) {
  for (int64_t k = 0; k < count; k++)
    for (int64_t row = 0; row < rows; row++) *out++ = in[row * stride + k];
}

} // namespace

void linear_floats(const Weight& weight, const float* x, int64_t x_stride, int64_t rows, const Result& result) {
  static thread_local Scratch scratch;
  Rows ordered{Groups(rows, MOST), weight.in_features, x};
  if (rows > 1) {
    float* all = scratch.get<float>(rows * weight.in_features);
    ordered.x = all;
    parallel(ordered.groups.count, [&](int64_t group) {
      int64_t const first = ordered.groups.first(group);
      interleave(x + first * x_stride, x_stride, ordered.groups.size(group), weight.in_features,
                 all + first * weight.in_features);
    });
  }
  if (weight.kind == FLOAT32) all_tiles<FLOAT32>(weight, ordered, result);
  else if (weight.kind == FLOAT16) all_tiles<FLOAT16>(weight, ordered, result);
  else all_tiles<BFLOAT16>(weight, ordered, result);
}
