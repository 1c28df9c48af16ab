// Norms of rows. See hotkernels/norm.py for what is computed.
#include "export.h"
#include "pool.h"
#include "program.h"
#include "stored.h"

namespace {

constexpr int64_t ENOUGH = 1 << 14; // numbers worth a task

// Rows of n numbers: of a batch, or of the heads of its rows.
struct Rows {
  int64_t count, heads, n;
  template <class F> void each(F&& body) const {
    int64_t const of_task = n * heads >= ENOUGH ? 1 : ENOUGH / (n * heads + 1) + 1;
    int64_t const tasks = (count + of_task - 1) / of_task;
    auto const run = [&](int64_t task) {
      for (int64_t row = task * of_task; row < count && row < (task + 1) * of_task; row++)
        for (int64_t head = 0; head < heads; head++) body(row, head);
    };
    if (tasks > 1) return parallel(tasks, run);
    run(0);
  }
};

// Calls body(i, lanes) for the vectors of a row, the last of which may be short.
template <class F> void vectors(int64_t n, F&& body) {
  int64_t i = 0;
  for (; i + W <= n; i += W) body(i, W);
  if (i < n) body(i, (int)(n - i));
}
template <class T> vf read(const T* p, int lanes) { return lanes == W ? load(p) : load(p, lanes); }
void write(float* p, vf v, int lanes) { lanes == W ? store(p, v) : store(p, v, lanes); }

// The sum of body(i, lanes) over the vectors of a row, in four chains whatever their number.
template <class F> float sum_of(int64_t n, F&& body) {
  vf chains[4] = {};
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W)
    for (int c = 0; c < 4; c++) chains[c] += body(i + c * W, W);
  for (int c = 0; i < n; i += W, c++) chains[c] += body(i, n - i < W ? (int)(n - i) : W);
  return sum((chains[0] + chains[1]) + (chains[2] + chains[3]));
}

// The row to norm: x, or the residual after x went into it.
const float* added(const float* x, float* residual, float scale, int64_t n) {
  if (residual == nullptr) return x;
  vectors(n, [&](int64_t i, int lanes) {
    write(residual + i, fma(read(x + i, lanes), all(scale), read(residual + i, lanes)), lanes);
  });
  return residual;
}

template <class T> void rms_row(const float* x, const T* weight, float offset, float eps, float* y, int64_t n) {
  float const squares = sum_of(n, [&](int64_t i, int lanes) { vf v = read(x + i, lanes); return v * v; });
  vf const scale = all(1.0f / std::sqrt(squares / (float)n + eps));
  vectors(n, [&](int64_t i, int lanes) {
    write(y + i, read(x + i, lanes) * scale * (read(weight + i, lanes) + all(offset)), lanes);
  });
}

template <class T> void layer_row(const float* x, const T* weight, const T* bias, float eps, float* y, int64_t n) {
  float const mean = sum_of(n, [&](int64_t i, int lanes) { return read(x + i, lanes); }) / (float)n;
  float const squares = sum_of(n, [&](int64_t i, int lanes) {
    float apart[W];
    store(apart, read(x + i, lanes) - all(mean));
    vf v = read(apart, lanes); // without lanes that are no numbers of the row
    return v * v;
  });
  vf const scale = all(1.0f / std::sqrt(squares / (float)n + eps));
  vectors(n, [&](int64_t i, int lanes) {
    vf v = (read(x + i, lanes) - all(mean)) * scale * read(weight + i, lanes);
    write(y + i, bias == nullptr ? v : v + read(bias + i, lanes), lanes);
  });
}

} // namespace

// Shape: x [rows, heads, n], heads of a row x_head floats apart; weight [heads or 1, n] (weight_head is n or 0);
// residual null or as x with a single head; y as x, and may be x.
EXPORT void rms_norm(const float* x, int64_t x_stride, int64_t x_head, const void* weight, int64_t stored,
                     int64_t weight_head, float offset, float eps, float* residual, int64_t residual_stride, float scale,
                     float* y, int64_t y_stride, int64_t y_head, int64_t rows, int64_t heads, int64_t n) {
  with_stored(weight, stored, [&](auto* w) {
    Rows{rows, heads, n}.each([&](int64_t row, int64_t head) {
      float* const r = residual == nullptr ? nullptr : residual + row * residual_stride;
      const float* const in = added(x + row * x_stride + head * x_head, r, scale, n);
      rms_row(in, w + head * weight_head, offset, eps, y + row * y_stride + head * y_head, n);
    });
  });
}
OP(rms_norm)

// Shape: as rms_norm with one head; weight [n], bias [n] of the same type or null.
EXPORT void layer_norm(const float* x, int64_t x_stride, const void* weight, const void* bias, int64_t stored, float eps,
                       float* residual, int64_t residual_stride, float scale, float* y, int64_t y_stride, int64_t rows,
                       int64_t n) {
  with_stored(weight, stored, [&](auto* w) {
    Rows{rows, 1, n}.each([&](int64_t row, int64_t) {
      float* const r = residual == nullptr ? nullptr : residual + row * residual_stride;
      const float* const in = added(x + row * x_stride, r, scale, n);
      layer_row(in, w, static_cast<decltype(w)>(bias), eps, y + row * y_stride, n);
    });
  });
}
OP(layer_norm)
