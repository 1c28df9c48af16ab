// Low-rank updates of many adapters, each on its own rows. See hotkernels/low_rank.py for what is computed.
#pragma once

#include "fetch.h"

// As Python lays them out: int64 each.
struct Factors { int64_t a, b, rank, a_type, a_by_rank, b_type, out; }; // a_by_rank: [r, in]; rank 0: no update
struct Map { int64_t place, column; }; // of a table, and in the rows that are updated
struct Segment { const Factors* table; int64_t places, start, stop; };

// What the rows of a product get, whose outputs are those of `maps` side by side.
struct Updates {
  const Map* maps;
  int64_t map_count;
  const Segment* segments;
  int64_t segment_count;

  // Calls body(segment, factors, column) for each, those of a segment one after another.
  template <class F> void each(F&& body) const {
    for (const Segment* s = segments; s < segments + segment_count; s++)
      for (const Map* m = maps; m < maps + map_count; m++)
        if (m->place < s->places && s->table[m->place].rank > 0) body(*s, s->table[m->place], m->column);
  }
};

// Shape: x [T, in], y [T, the columns of all maps].
void add_updates(const Updates& updates, const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t in);
// All that it will read, to be fetched before.
void list_factors(const Updates& updates, int64_t in, Fetches& list);
