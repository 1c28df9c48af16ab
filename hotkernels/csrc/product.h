// Rows times a matrix that is stored with its input features first, in a fixed order of additions per row.
//
// Every lane of an output is a chain of fmas over the inputs, or four (of every fourth input, added last) where the matrix
// is too narrow for one chain to keep the processor busy; four round less, too. Which of the two is a matter of the
// matrix's width alone, so neither the rows that are computed together nor the columns of a task change a result.
#pragma once

#include "stored.h"

// Shape: x rows of `in` floats; w [in, out], rows w_stride apart; y rows of out floats. y += x @ w where `add`.
template <class T> struct Product {
  const float* x;
  int64_t x_stride;
  const T* w;
  int64_t w_stride;
  float* y;
  int64_t y_stride;
  int64_t in, out;
  bool add;

  // Rows [row, row_end), columns [column, column_end); column is a multiple of W, column_end too or the last.
  void run(int64_t row, int64_t row_end, int64_t column, int64_t column_end) const {
    if (out <= 2 * W) return rows<4>(row, row_end, column, column_end);
    rows<1>(row, row_end, column, column_end);
  }

 private:
  template <int CHAINS> void rows(int64_t row, int64_t row_end, int64_t column, int64_t column_end) const {
    constexpr int TALL = CHAINS == 1 || W == 16 ? 4 : 2; // as many sums as there are registers for
    int64_t const even = row + (row_end - row) / TALL * TALL;
    // Column by column: the part of w that is being read stays close while all rows pass over it.
    columns<TALL, 8 / TALL, CHAINS>(row, even, column, column_end);
    if (row_end - even >= 2) columns<2, 4, CHAINS>(even, even + 2, column, column_end);
    if ((row_end - even) % 2) columns<1, 8, CHAINS>(row_end - 1, row_end, column, column_end);
  }

  template <int ROWS, int MOST, int CHAINS>
  void columns(int64_t row, int64_t row_end, int64_t column, int64_t column_end) const {
    if (row >= row_end) return;
    constexpr int WIDE = MOST > CHAINS ? MOST / CHAINS : 1; // vectors of columns: 8 chains hide the latency of an fma
    for (; column + WIDE * W <= column_end; column += WIDE * W) tile<ROWS, WIDE, CHAINS>(row, row_end, column, W);
    for (; column + W <= column_end; column += W) tile<ROWS, 1, CHAINS>(row, row_end, column, W);
    if (column < column_end) tile<ROWS, 1, CHAINS>(row, row_end, column, (int)(column_end - column));
  }

  // `last` lanes of the last vector are columns of w.
  template <int ROWS, int WIDE, int CHAINS>
  void tile(int64_t row, int64_t row_end, int64_t column, int last) const {
    int64_t const whole = last == W ? in : whole_loads(column);
    for (; row < row_end; row += ROWS) {
      vf sums[CHAINS][ROWS][WIDE] = {};
      int64_t k = 0;
      for (; k + CHAINS <= whole; k += CHAINS)
        for (int c = 0; c < CHAINS; c++) step<ROWS, WIDE>(sums[c], row, k + c, column);
      for (; k < whole; k++) step<ROWS, WIDE>(sums[k % CHAINS], row, k, column);
      for (; k < in; k++) last_step<ROWS, WIDE>(sums[k % CHAINS], row, k, column, last);
      for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < WIDE; v++) {
          vf sum = sums[0][r][v];
          if (CHAINS == 4) sum = (sum + sums[1 % CHAINS][r][v]) + (sums[2 % CHAINS][r][v] + sums[3 % CHAINS][r][v]);
          write(y + (row + r) * y_stride + column + v * W, sum, v == WIDE - 1 ? last : W);
        }
    }
  }

  // How many rows of w a whole vector at `column` can be read from without leaving w; lanes beyond its columns are
  // the next row's, and go nowhere.
  int64_t whole_loads(int64_t column) const {
    int64_t const room = (in - 1) * w_stride + out - column - W;
    int64_t const count = room < 0 ? 0 : room / w_stride + 1;
    return count < in ? count : in;
  }

  template <int ROWS, int WIDE> void step(vf (&sums)[ROWS][WIDE], int64_t row, int64_t k, int64_t column) const {
    vf weights[WIDE];
    for (int v = 0; v < WIDE; v++) weights[v] = load(w + k * w_stride + column + v * W);
    for (int r = 0; r < ROWS; r++) {
      vf const given = all(x[(row + r) * x_stride + k]);
      for (int v = 0; v < WIDE; v++) sums[r][v] = fma(given, weights[v], sums[r][v]);
    }
  }

  template <int ROWS, int WIDE>
  void last_step(vf (&sums)[ROWS][WIDE], int64_t row, int64_t k, int64_t column, int last) const {
    for (int r = 0; r < ROWS; r++)
      sums[r][0] = fma(all(x[(row + r) * x_stride + k]), load(w + k * w_stride + column, last), sums[r][0]);
  }

  void write(float* to, vf sum, int lanes) const {
    if (lanes == W) return store(to, add ? load(to) + sum : sum);
    store(to, add ? load(to, lanes) + sum : sum, lanes);
  }
};

// The same with a matrix that is stored with its output features first: w [out, in], rows w_stride apart. Every output is
// one chain of vectors over the inputs, and then the sum of its lanes.
template <class T> struct Dots {
  const float* x;
  int64_t x_stride;
  const T* w;
  int64_t w_stride;
  float* y;
  int64_t y_stride;
  int64_t in;

  void run(int64_t row, int64_t row_end, int64_t column, int64_t column_end) const {
    for (; row + 4 <= row_end; row += 4) columns<4, W == 16 ? 4 : 2>(row, column, column_end); // as registers allow
    for (; row + 2 <= row_end; row += 2) columns<2, W == 16 ? 8 : 4>(row, column, column_end);
    for (; row < row_end; row++) columns<1, 8>(row, column, column_end);
  }

 private:
  template <int ROWS, int OUTS> void columns(int64_t row, int64_t column, int64_t column_end) const {
    for (; column + OUTS <= column_end; column += OUTS) tile<ROWS, OUTS>(row, column);
    for (; column < column_end; column++) tile<ROWS, 1>(row, column);
  }

  template <int ROWS, int OUTS> void tile(int64_t row, int64_t column) const {
    vf sums[ROWS][OUTS] = {};
    int64_t k = 0;
    auto const step = [&](auto&& read) {
      vf weights[OUTS];
      for (int o = 0; o < OUTS; o++) weights[o] = read(w + (column + o) * w_stride + k);
      for (int r = 0; r < ROWS; r++) {
        vf const given = read(x + (row + r) * x_stride + k);
        for (int o = 0; o < OUTS; o++) sums[r][o] = fma(given, weights[o], sums[r][o]);
      }
    };
    for (; k + W <= in; k += W) step([](auto* p) { return load(p); });
    int const rest = (int)(in - k);
    if (rest > 0) step([rest](auto* p) { return load(p, rest); });
    for (int r = 0; r < ROWS; r++)
      for (int o = 0; o < OUTS; o++) y[(row + r) * y_stride + column + o] = sum(sums[r][o]);
  }
};
