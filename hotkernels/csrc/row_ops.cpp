// What adapters of many kinds do to rows of a batch, in one call. See hotkernels/row_ops.py for what is computed.
#include <type_traits>
#include <vector>

#include "export.h"
#include "linear_maps.h"
#include "pool.h"
#include "product.h"
#include "program.h"

namespace {

constexpr int64_t ROWS = 8;         // of a task
constexpr int64_t ENOUGH = 1 << 15; // multiplications worth waking another thread for

// As Python lays them out: int64 each.
enum Code : int64_t { AFFINE = 0, SHARED_LOW_RANK = 1, KRON = 2, ROTATION = 3 };
struct Stack { int64_t at, type; };
struct RowOp {
  int64_t code;
  Stack of[4];
  int64_t size[5];
};
struct OpList { const RowOp* first; int64_t count; };
struct OpRows { const OpList* table; int64_t places, start, stop; };

// Rows that one task changes, in columns from `column` on.
struct Piece { OpList ops; int64_t column, start, stop; };

// Shape: x [count, in], y [count, out].
struct Rows {
  const float* x;
  int64_t x_stride, in;
  float* y;
  int64_t y_stride, out, count;

  const float* x_row(int64_t i) const { return x + i * x_stride; }
  float* y_row(int64_t i) const { return y + i * y_stride; }
};

// Memory of the thread, for what is computed in between.
float* scratch(int64_t size) {
  static thread_local std::vector<float> kept;
  if ((int64_t)kept.size() < size) kept.resize(size);
  return kept.data();
}

// Calls body(i, lanes) for runs of up to W of n numbers.
template <class F> void by_vectors(int64_t n, F&& body) {
  int64_t i = 0;
  for (; i + W <= n; i += W) body(i, std::integral_constant<int, W>());
  if (i < n) body(i, (int)(n - i));
}

// A few numbers; all W of them where that is known beforehand.
template <class T> vf some(const T* p, std::integral_constant<int, W>) { return load(p); }
template <class T> vf some(const T* p, int lanes) { return load(p, lanes); }
void put(float* p, vf v, std::integral_constant<int, W>) { store(p, v); }
void put(float* p, vf v, int lanes) { store(p, v, lanes); }

// y = x @ w, or y += x @ w. Shape: x [rows, in], w [in, out], y [rows, out].
struct Matrix {
  Stack w;
  int64_t stride, in, out;

  void times(const float* x, int64_t x_stride, int64_t rows, float* y, int64_t y_stride, bool add) const {
    with_stored((const void*)w.at, w.type, [&](auto* weights) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(weights)>>;
      Product<T>{x, x_stride, weights, stride, y, y_stride, in, out, add}.run(0, rows, 0, out);
    });
  }
};

// values [rows, n] *= gains [n]
void scale(float* values, int64_t stride, int64_t rows, const Stack& gains, int64_t n) {
  with_stored((const void*)gains.at, gains.type, [&](auto* gain) {
    for (int64_t r = 0; r < rows; r++)
      by_vectors(n, [&](int64_t i, auto lanes) {
        float* const at = values + r * stride + i;
        put(at, some((const float*)at, lanes) * some(gain + i, lanes), lanes);
      });
  });
}

// to [rows, n] += from [rows, n], which lies without gaps
void add(float* to, int64_t stride, const float* from, int64_t rows, int64_t n) {
  for (int64_t r = 0; r < rows; r++)
    by_vectors(n, [&](int64_t i, auto lanes) {
      float* const at = to + r * stride + i;
      put(at, some((const float*)at, lanes) + some(from + r * n + i, lanes), lanes);
    });
}

// of: excess and shift [out], one of them may be absent. size: out
void affine(const RowOp& op, const Rows& rows) {
  int64_t const out = op.size[0];
  if (op.of[0].at != 0)
    with_stored((const void*)op.of[0].at, op.of[0].type, [&](auto* excess) {
      for (int64_t r = 0; r < rows.count; r++)
        by_vectors(out, [&](int64_t i, auto lanes) {
          float* const at = rows.y_row(r) + i;
          vf const y = some((const float*)at, lanes);
          put(at, fma(some(excess + i, lanes), y, y), lanes);
        });
    });
  if (op.of[1].at != 0)
    with_stored((const void*)op.of[1].at, op.of[1].type, [&](auto* shift) {
      for (int64_t r = 0; r < rows.count; r++)
        by_vectors(out, [&](int64_t i, auto lanes) {
          float* const at = rows.y_row(r) + i;
          put(at, some((const float*)at, lanes) + some(shift + i, lanes), lanes);
        });
    });
}

// of: a [at least in, r], b [r, b_stride], inner [r], outer [out]. size: r, out, b_stride
void shared_low_rank(const RowOp& op, const Rows& rows) {
  int64_t const in = rows.in, r = op.size[0], out = op.size[1], b_stride = op.size[2];
  float* const hidden = scratch(rows.count * (r + out));
  float* const update = hidden + rows.count * r;
  Matrix{op.of[0], r, in, r}.times(rows.x, rows.x_stride, rows.count, hidden, r, false);
  scale(hidden, r, rows.count, op.of[2], r);
  Matrix{op.of[1], b_stride, r, out}.times(hidden, r, rows.count, update, out, false);
  scale(update, out, rows.count, op.of[3], out);
  add(rows.y, rows.y_stride, update, rows.count, out);
}

// of: w1 [out1, in1], down [in2, r] and up [r, out2], or down [in2, out2] alone. size: out1, in1, in2, r, out2
void kron(const RowOp& op, const Rows& rows) {
  auto const [out1, in1, in2, r, out2] = op.size;
  bool const is_factored = op.of[2].at != 0;
  float* const w1 = scratch(out1 * in1 + in1 * (r + out2));
  float* const narrow = w1 + out1 * in1;
  float* const wide = is_factored ? narrow + in1 * r : narrow;
  with_stored((const void*)op.of[0].at, op.of[0].type, [&](auto* stored) {
    by_vectors(out1 * in1, [&](int64_t i, auto lanes) { put(w1 + i, some(stored + i, lanes), lanes); });
  });
  for (int64_t row = 0; row < rows.count; row++) {
    Matrix{op.of[1], r, in2, r}.times(rows.x_row(row), in2, in1, narrow, r, false);
    if (is_factored) Matrix{op.of[2], out2, r, out2}.times(narrow, r, in1, wide, out2, false);
    Matrix{{(int64_t)wide, FLOAT32}, out2, in1, out2}.times(w1, in1, out1, rows.y_row(row), out2, true);
  }
}

// of: change [blocks, b, b]. size: blocks (1 is for all), b, fold
void rotation(const RowOp& op, const Rows& rows) {
  int64_t const blocks = op.size[0], b = op.size[1], fold = op.size[2];
  int64_t const half = fold == 1 ? b : b / 2, bytes = b * b * (op.of[0].type == FLOAT32 ? 4 : 2);
  float* const given = scratch(2 * rows.count * b);
  float* const turned = given + rows.count * b;
  for (int64_t block = 0; block < rows.out / b; block++) {
    // The block's places are `runs` of `half` features, `fold` such runs apart.
    int64_t const first = fold == 1 ? block * b : block / fold * fold * b + block % fold * half;
    int64_t const runs = b / half, apart = fold * half;
    for (int64_t r = 0; r < rows.count; r++)
      for (int64_t run = 0; run < runs; run++)
        std::memcpy(given + r * b + run * half, rows.y_row(r) + first + run * apart, sizeof(float) * half);
    int64_t const at = op.of[0].at + (blocks == 1 ? 0 : block * bytes);
    Matrix{{at, op.of[0].type}, b, b, b}.times(given, b, rows.count, turned, b, false);
    for (int64_t i = 0; i < rows.count * b; i++) turned[i] += given[i];
    for (int64_t r = 0; r < rows.count; r++)
      for (int64_t run = 0; run < runs; run++)
        std::memcpy(rows.y_row(r) + first + run * apart, turned + r * b + run * half, sizeof(float) * half);
  }
}

void apply(const RowOp& op, const Rows& rows) {
  switch (op.code) {
    case AFFINE: return affine(op, rows);
    case SHARED_LOW_RANK: return shared_low_rank(op, rows);
    case KRON: return kron(op, rows);
    case ROTATION: return rotation(op, rows);
  }
}

// About how many multiplications an op is for a row.
int64_t work(const RowOp& op, int64_t in, int64_t out) {
  auto const& n = op.size;
  switch (op.code) {
    case SHARED_LOW_RANK: return n[0] * (in + n[1]);
    case KRON: return n[1] * n[3] * (n[2] + n[4]) + n[0] * n[1] * n[4];
    case ROTATION: return out * n[1];
    default: return n[0];
  }
}

// What is to be done to rows y [T, out] with rows x [T, in].
class Work {
 public:
  Work(const float* x, int64_t x_stride, int64_t in, float* y, int64_t y_stride, int64_t out)
      : x_(x), x_stride_(x_stride), in_(in), y_(y), y_stride_(y_stride), out_(out), pieces_(kept()) {
    pieces_.clear();
  }

  void add(const OpList& ops, int64_t column, int64_t start, int64_t stop) {
    for (const RowOp* op = ops.first; op < ops.first + ops.count; op++) size_ += (stop - start) * work(*op, in_, out_);
    for (int64_t row = start; row < stop && ops.count > 0; row += ROWS)
      pieces_.push_back({ops, column, row, row + ROWS < stop ? row + ROWS : stop});
  }

  void run() const {
    auto const piece = [&](int64_t task) {
      auto const [ops, column, start, stop] = pieces_[task];
      Rows const rows{x_ + start * x_stride_, x_stride_, in_, y_ + start * y_stride_ + column, y_stride_, out_, stop - start};
      for (const RowOp* op = ops.first; op < ops.first + ops.count; op++) apply(*op, rows);
    };
    if (size_ > ENOUGH) return parallel((int64_t)pieces_.size(), piece);
    for (int64_t task = 0; task < (int64_t)pieces_.size(); task++) piece(task);
  }

 private:
  static std::vector<Piece>& kept() {
    static thread_local std::vector<Piece> pieces;
    return pieces;
  }

  const float* x_;
  int64_t x_stride_, in_;
  float* y_;
  int64_t y_stride_, out_;
  std::vector<Piece>& pieces_; // other threads see this one's by reference only
  int64_t size_ = 0;
};

// As Python lays them out: a map whose outputs are `out` columns from `column` on.
struct Part { int64_t place, column, out; const Weight* weight; const float* bias; };

// Rows of inputs, as many as there are, and how they are changed at a place.
struct Inputs {
  const float* x;
  int64_t x_stride, in, rows;
  const OpRows* segments;
  int64_t segment_count;

  // Calls body(ops, start, stop) for the rows that are changed.
  template <class F> void each(int64_t place, F&& body) const {
    for (const OpRows* s = segments; s < segments + segment_count; s++)
      if (place < s->places && s->table[place].count > 0) body(s->table[place], s->start, s->stop);
  }

  int64_t count(int64_t place) const {
    int64_t changed = 0;
    each(place, [&](const OpList&, int64_t start, int64_t stop) { changed += stop - start; });
    return changed;
  }

  void copy(int64_t start, int64_t stop, float* to) const {
    for (int64_t row = start; row < stop; row++, to += in) std::memcpy(to, x + row * x_stride, sizeof(float) * in);
  }

  // The product of all rows.
  void all(const Part& part, float* y, int64_t y_stride) const {
    if (count(part.place) == 0) return linear(part.weight, x, x_stride, rows, part.bias, y + part.column, y_stride);
    static thread_local std::vector<float> given;
    given.resize(rows * in);
    copy(0, rows, given.data());
    Work work(given.data(), in, in, given.data(), in, in);
    each(part.place, [&](const OpList& ops, int64_t start, int64_t stop) { work.add(ops, 0, start, stop); });
    work.run();
    linear(part.weight, given.data(), in, rows, part.bias, y + part.column, y_stride);
  }

  // The product of the changed rows alone.
  void some(const Part& part, float* y, int64_t y_stride) const {
    int64_t const changed = count(part.place);
    if (changed == 0) return;
    static thread_local std::vector<float> given, product;
    given.resize(changed * in), product.resize(changed * part.out);
    Work work(given.data(), in, in, given.data(), in, in);
    int64_t row = 0;
    each(part.place, [&](const OpList& ops, int64_t start, int64_t stop) {
      copy(start, stop, given.data() + row * in);
      work.add(ops, 0, row, row + stop - start);
      row += stop - start;
    });
    work.run();
    linear(part.weight, given.data(), in, changed, part.bias, product.data(), part.out);
    const float* from = product.data();
    each(part.place, [&](const OpList&, int64_t start, int64_t stop) {
      for (int64_t r = start; r < stop; r++, from += part.out)
        std::memcpy(y + r * y_stride + part.column, from, sizeof(float) * part.out);
    });
  }
};

} // namespace

// Shape: x [T, in], y [T, out]; maps and segments as in Python.
EXPORT void apply_row_ops(const float* x, int64_t x_stride, int64_t in, float* y, int64_t y_stride, int64_t out,
                          const Map* maps, int64_t map_count, const OpRows* segments, int64_t segment_count) {
  Work work(x, x_stride, in, y, y_stride, out);
  for (const OpRows* s = segments; s < segments + segment_count; s++)
    for (const Map* m = maps; m < maps + map_count; m++)
      if (m->place < s->places) work.add(s->table[m->place], m->column, s->start, s->stop);
  work.run();
}

// Shape: x [rows, in], y [rows, the columns of all parts]; joined is all parts in one, or null where there is no such.
EXPORT void linear_of_changed(const Weight* joined, const float* bias, const Part* parts, int64_t part_count,
                              const float* x, int64_t x_stride, int64_t in, int64_t rows, float* y, int64_t y_stride,
                              const OpRows* segments, int64_t segment_count) {
  Inputs const inputs{x, x_stride, in, rows, segments, segment_count};
  int64_t most = 0;
  for (const Part* part = parts; part < parts + part_count; part++) {
    int64_t const changed = inputs.count(part->place);
    most = changed > most ? changed : most;
  }
  // Few rows are computed once more with their own input; many are not worth it.
  bool const once_more = joined != nullptr && part_count > 1 && 2 * most <= rows;
  if (once_more) linear(joined, x, x_stride, rows, bias, y, y_stride);
  for (const Part* part = parts; part < parts + part_count; part++)
    once_more ? inputs.some(*part, y, y_stride) : inputs.all(*part, y, y_stride);
}

// linear_of_changed by the segments `before`, then add_low_rank by `segments` and apply_row_ops by `after`.
EXPORT void linear_adapted(const Weight* joined, const float* bias, const Part* parts, int64_t part_count,
                           const float* x, int64_t x_stride, int64_t in, int64_t rows, float* y, int64_t y_stride,
                           const Map* maps, int64_t map_count, const Segment* segments, int64_t segment_count,
                           const OpRows* before, int64_t before_count, const OpRows* after, int64_t after_count) {
  Inputs const inputs{x, x_stride, in, rows, before, before_count};
  int64_t changed = 0;
  for (const Part* part = parts; part < parts + part_count; part++) changed += inputs.count(part->place);
  if (changed == 0 && joined != nullptr) {
    linear_updated(joined, x, x_stride, rows, bias, y, y_stride, maps, map_count, segments, segment_count);
  } else {
    linear_of_changed(joined, bias, parts, part_count, x, x_stride, in, rows, y, y_stride, before, before_count);
    add_updates({maps, map_count, segments, segment_count}, x, x_stride, y, y_stride, in);
  }
  apply_row_ops(x, x_stride, in, y, y_stride, y_stride, maps, map_count, after, after_count);
}
OP(linear_adapted)
