// Low-rank updates of many adapters in one call. See hotkernels/low_rank.py for what is computed.
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
int64_t size_of(int64_t stored) { return stored == FLOAT32 ? 4 : 2; }

template <class P> using StoredBehind = std::remove_const_t<std::remove_pointer_t<P>>;

// As Python lays them out: int64 each.
struct Factors { int64_t a, b, rank, a_type, b_type, column, out; };
struct Segment { int64_t member, start, stop; };

// Rows that one task updates, and where in the buffer between the two products theirs begin.
struct Rows {
  const Factors* factors;
  int64_t start, stop, hidden;
  int64_t count() const { return stop - start; }
};

struct Update {
  const float* x;
  int64_t x_stride;
  float* y;
  int64_t y_stride, in;
  float* hidden;

  void shrink(const Rows& rows, int64_t column, int64_t column_end) const {
    const Factors& f = *rows.factors;
    Ahead ahead = Ahead::of((const void*)f.b, f.rank * f.out * size_of(f.b_type), in * parts(rows.count(), 4));
    with_stored((const void*)f.a, f.a_type, [&](auto* a) {
      Product<StoredBehind<decltype(a)>> const product{
          x + rows.start * x_stride, x_stride, a, f.rank, hidden + rows.hidden, f.rank, in, f.rank, false, &ahead};
      product.run(0, rows.count(), column, column_end);
    });
  }

  // `next`: rows that the same thread computes then, or null.
  void expand(const Rows& rows, int64_t column, int64_t column_end, const Rows* next) const {
    const Factors& f = *rows.factors;
    Ahead ahead = Ahead::of((const void*)f.b, 0, 0);
    if (next != nullptr) {
      const Factors& g = *next->factors;
      ahead = Ahead::of((const void*)g.a, g.rank * in * size_of(g.a_type), f.rank * parts(f.out, 4 * W));
    }
    with_stored((const void*)f.b, f.b_type, [&](auto* b) {
      Product<StoredBehind<decltype(b)>> const product{
          hidden + rows.hidden, f.rank, b, f.out, y + rows.start * y_stride + f.column, y_stride, f.rank, f.out, true, &ahead};
      product.run(0, rows.count(), column, column_end);
    });
  }
};

// All that is to be done, in pieces of a few rows; returns how many multiplications it is.
int64_t divide(const Factors* factors, int64_t per_member, const Segment* segments, int64_t count, int64_t in,
               std::vector<Rows>& pieces, std::vector<float>& hidden) {
  int64_t rows = 0, size = 0, work = 0;
  for (int64_t s = 0; s < count; s++) rows += segments[s].stop - segments[s].start;
  int64_t const share = parts(rows / (2 * num_threads()), 4) * 4;
  int64_t const step = share < 4 ? 4 : least(share, MOST_ROWS);
  pieces.clear();
  for (const Segment* s = segments; s < segments + count; s++) {
    const Factors* const end = factors + (s->member + 1) * per_member;
    for (const Factors* f = end - per_member; f < end && f->rank > 0; f++)
      for (int64_t row = s->start; row < s->stop; row += step) {
        pieces.push_back({f, row, least(row + step, s->stop), size});
        size += pieces.back().count() * f->rank;
        work += pieces.back().count() * f->rank * (in + f->out);
      }
  }
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

// Shape: x and y as in Python; factors [members, per_member], filled up with such of rank 0; segments [count].
EXPORT void add_low_rank(const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t in,
                         const Factors* factors, int64_t per_member, const Segment* segments, int64_t count) {
  static thread_local std::vector<Rows> kept_pieces;
  static thread_local std::vector<float> kept_hidden;
  const std::vector<Rows>& pieces = kept_pieces; // other threads see this one's by reference only
  int64_t const work = divide(factors, per_member, segments, count, in, kept_pieces, kept_hidden);
  int64_t const todo = (int64_t)pieces.size();
  Update const update{x, x_stride, y, y_stride, in, kept_hidden.data()};
  if (todo < num_threads() && work > ENOUGH) {
    by_columns(pieces, [](const Rows& rows) { return rows.factors->rank; },
               [&](const Rows& rows, int64_t from, int64_t to) { update.shrink(rows, from, to); });
    by_columns(pieces, [](const Rows& rows) { return rows.factors->out; },
               [&](const Rows& rows, int64_t from, int64_t to) { update.expand(rows, from, to, nullptr); });
    return;
  }
  int64_t const runs = least(todo, 3 * num_threads()); // of pieces one after another, so that each knows the next
  auto const run = [&](int64_t g) {
    int64_t const end = (g + 1) * todo / runs;
    for (int64_t i = g * todo / runs; i < end; i++) {
      update.shrink(pieces[i], 0, pieces[i].factors->rank);
      update.expand(pieces[i], 0, pieces[i].factors->out, i + 1 < end ? &pieces[i + 1] : nullptr);
    }
  };
  if (work > ENOUGH) return parallel(runs, run);
  for (int64_t g = 0; g < runs; g++) run(g);
}
