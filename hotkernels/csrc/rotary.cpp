// Rotary positions. See hotkernels/rotary.py for what is computed.
#include "export.h"
#include "pool.h"
#include "program.h"
#include "simd.h"

namespace {

constexpr int64_t ENOUGH = 1 << 13; // pairs worth a task

void turn_halves(float* a, float* b, const float* cos, const float* sin, int64_t n) {
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    vf const p = load(a + i), q = load(b + i), c = load(cos + i), s = load(sin + i);
    store(a + i, p * c - q * s);
    store(b + i, q * c + p * s);
  }
  for (; i < n; i++) {
    float const p = a[i], q = b[i];
    a[i] = p * cos[i] - q * sin[i];
    b[i] = q * cos[i] + p * sin[i];
  }
}

void turn_neighbours(float* x, const float* cos, const float* sin, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    float const p = x[2 * i], q = x[2 * i + 1];
    x[2 * i] = p * cos[i] - q * sin[i];
    x[2 * i + 1] = q * cos[i] + p * sin[i];
  }
}

} // namespace

// Shape: x [rows, heads, at least 2 half]; cos and sin [rows, half], rows any distance apart.
EXPORT void rotate(float* x, int64_t x_stride, int64_t x_head, const float* cos, int64_t cos_stride, const float* sin,
                   int64_t sin_stride, int64_t rows, int64_t heads, int64_t half, int64_t interleaved) {
  int64_t const of_task = ENOUGH / (heads * half + 1) + 1, tasks = (rows + of_task - 1) / of_task;
  auto const run = [&](int64_t task) {
    for (int64_t row = task * of_task; row < rows && row < (task + 1) * of_task; row++) {
      const float* const c = cos + row * cos_stride;
      const float* const s = sin + row * sin_stride;
      for (int64_t head = 0; head < heads; head++) {
        float* const at = x + row * x_stride + head * x_head;
        if (interleaved) turn_neighbours(at, c, s, half);
        else turn_halves(at, at + half, c, s, half);
      }
    }
  };
  if (tasks > 1) return parallel(tasks, run);
  for (int64_t task = 0; task < tasks; task++) run(task);
}
OP(rotate)
