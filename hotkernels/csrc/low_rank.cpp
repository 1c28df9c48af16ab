#include "low_rank.h"

#include <type_traits>
#include <vector>

#include "export.h"
#include "pool.h"
#include "product.h"

namespace {

constexpr int64_t COLUMNS = 32 * W; // of a task, where columns are shared out
constexpr int64_t MOST_ROWS = 16;   // of a task
constexpr int64_t ENOUGH = 1 << 15; // multiplications worth waking another thread for

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t parts(int64_t count, int64_t size) { return (count + size - 1) / size; }
int64_t stored_bytes(int64_t type) { return type == FLOAT32 ? 4 : 2; }

template <class P> using StoredBehind = std::remove_const_t<std::remove_pointer_t<P>>;

// Rows that one task updates, and where in the buffer between the two products theirs begin.
struct Rows {
  const Factors* factors;
  int64_t column, start, stop, hidden;
  int64_t count() const { return stop - start; }
};

struct Products {
  const float* x;
  int64_t x_stride;
  float* y;
  int64_t y_stride, in;
  float* hidden;

  void shrink(const Rows& rows, int64_t column, int64_t column_end) const {
    const Factors& f = *rows.factors;
    const float* const given = x + rows.start * x_stride;
    with_stored((const void*)f.a, f.a_type, [&](auto* a) {
      using T = StoredBehind<decltype(a)>;
      float* const to = hidden + rows.hidden;
      if (f.a_by_rank) Dots<T>{given, x_stride, a, in, to, f.rank, in}.run(0, rows.count(), column, column_end);
      else Product<T>{given, x_stride, a, f.rank, to, f.rank, in, f.rank, false}.run(0, rows.count(), column, column_end);
    });
  }

  void expand(const Rows& rows, int64_t column, int64_t column_end) const {
    const Factors& f = *rows.factors;
    float* const to = y + rows.start * y_stride + rows.column;
    with_stored((const void*)f.b, f.b_type, [&](auto* b) {
      using T = StoredBehind<decltype(b)>;
      Product<T>{hidden + rows.hidden, f.rank, b, f.out, to, y_stride, f.rank, f.out, true}.run(
          0, rows.count(), column, column_end);
    });
  }
};

// All that is to be done, in pieces of a few rows; returns how many multiplications it is.
int64_t divide(const Updates& updates, int64_t in, std::vector<Rows>& pieces, std::vector<float>& hidden) {
  int64_t rows = 0, size = 0, work = 0;
  for (int64_t s = 0; s < updates.segment_count; s++) rows += updates.segments[s].stop - updates.segments[s].start;
  int64_t const share = parts(rows / (2 * num_threads()), 4) * 4;
  int64_t const step = share < 4 ? 4 : least(share, MOST_ROWS);
  pieces.clear();
  updates.each([&](const Segment& segment, const Factors& f, int64_t column) {
    for (int64_t row = segment.start; row < segment.stop; row += step) {
      pieces.push_back({&f, column, row, least(row + step, segment.stop), size});
      size += pieces.back().count() * f.rank;
      work += pieces.back().count() * f.rank * (in + f.out);
    }
  });
  if ((int64_t)hidden.size() < size) hidden.resize(size);
  return work;
}

// The columns of every piece shared out; `most` tells how many a piece has.
template <class Most, class Body> void by_columns(const std::vector<Rows>& pieces, Most most, Body body) {
  std::vector<int64_t> ends;
  int64_t tasks = 0;
  for (const Rows& rows : pieces) ends.push_back(tasks += parts(most(rows), COLUMNS));
  parallel(tasks, [&](int64_t task) {
    int64_t i = 0;
    while (task >= ends[i]) i++;
    int64_t const column = (task - (i == 0 ? 0 : ends[i - 1])) * COLUMNS;
    body(pieces[i], column, least(column + COLUMNS, most(pieces[i])));
  });
}

} // namespace

void list_factors(const Updates& updates, int64_t in, Fetches& list) {
  list.clear();
  updates.each([&](const Segment&, const Factors& f, int64_t) {
    list.add((const void*)f.a, in * f.rank * stored_bytes(f.a_type));
    list.add((const void*)f.b, f.rank * f.out * stored_bytes(f.b_type));
  });
}

void add_updates(const Updates& updates, const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t in) {
  static thread_local std::vector<Rows> kept_pieces;
  static thread_local std::vector<float> kept_hidden;
  const std::vector<Rows>& pieces = kept_pieces; // other threads see this one's by reference only
  int64_t const work = divide(updates, in, kept_pieces, kept_hidden);
  int64_t const todo = (int64_t)pieces.size();
  Products const products{x, x_stride, y, y_stride, in, kept_hidden.data()};
  if (todo < num_threads() && work > ENOUGH) {
    by_columns(pieces, [](const Rows& rows) { return rows.factors->rank; },
               [&](const Rows& rows, int64_t from, int64_t to) { products.shrink(rows, from, to); });
    by_columns(pieces, [](const Rows& rows) { return rows.factors->out; },
               [&](const Rows& rows, int64_t from, int64_t to) { products.expand(rows, from, to); });
    return;
  }
  int64_t const runs = least(todo, 3 * num_threads());
  auto const run = [&](int64_t g) {
    for (int64_t i = g * todo / runs; i < (g + 1) * todo / runs; i++) {
      products.shrink(pieces[i], 0, pieces[i].factors->rank);
      products.expand(pieces[i], 0, pieces[i].factors->out);
    }
  };
  if (work > ENOUGH) return parallel(runs, run);
  for (int64_t g = 0; g < runs; g++) run(g);
}

EXPORT void add_low_rank(const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t in, const Map* maps,
                         int64_t map_count, const Segment* segments, int64_t segment_count) {
  add_updates({maps, map_count, segments, segment_count}, x, x_stride, y, y_stride, in);
}
