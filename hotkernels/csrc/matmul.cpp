// Products of a stack of matrices. See hotkernels/products.py for what is computed.
#include <type_traits>

#include "export.h"
#include "pool.h"
#include "product.h"

namespace {

constexpr int64_t COLUMNS = 32 * W; // of a task
constexpr int64_t ROWS = 16;        // of a task
constexpr int64_t ENOUGH = 1 << 15; // multiplications worth waking another thread for

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t parts(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Calls part(group, row, row_end, column, column_end) for all of [groups, rows, out].
template <class Part> void share(int64_t groups, int64_t rows, int64_t in, int64_t out, Part part) {
  int64_t const row_parts = parts(rows, ROWS), column_parts = parts(out, COLUMNS);
  auto const run = [&](int64_t task) {
    int64_t const g = task / (row_parts * column_parts), rest = task % (row_parts * column_parts);
    int64_t const row = rest / column_parts * ROWS, column = rest % column_parts * COLUMNS;
    part(g, row, least(row + ROWS, rows), column, least(column + COLUMNS, out));
  };
  int64_t const tasks = groups * row_parts * column_parts;
  if (groups * rows * in * out > ENOUGH) return parallel(tasks, run);
  for (int64_t task = 0; task < tasks; task++) run(task);
}

} // namespace

// y[g] = x[g] @ w[g]. Shape: x [groups, rows, in], w [groups, in, out] or, transposed, [groups, out, in], of type
// w_type; y [groups, rows, out] without gaps.
EXPORT void matmul(const float* x, int64_t x_group, int64_t x_stride, const void* w, int64_t w_type, int64_t w_group,
                   int64_t w_stride, int64_t transposed, float* y, int64_t groups, int64_t rows, int64_t in, int64_t out) {
  with_stored(w, w_type, [&](auto* weights) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(weights)>>;
    share(groups, rows, in, out, [&](int64_t g, int64_t row, int64_t row_end, int64_t column, int64_t column_end) {
      const float* const given = x + g * x_group;
      const T* const matrix = weights + g * w_group;
      float* const to = y + g * rows * out;
      if (transposed) Dots<T>{given, x_stride, matrix, w_stride, to, out, in}.run(row, row_end, column, column_end);
      else Product<T>{given, x_stride, matrix, w_stride, to, out, in, out, false}.run(row, row_end, column, column_end);
    });
  });
}
