// Activations, alone and as gates. See hotkernels/activation.py for what is computed.
#include "export.h"
#include "pool.h"
#include "program.h"
#include "simd.h"

namespace {

constexpr int64_t ENOUGH = 1 << 12; // numbers worth a task

vf silu(vf x) { return x / (all(1.0f) + exp(-x)); }

// 0.5 (1 + tanh(u)) is 1 / (1 + exp(-2 u)), which keeps its precision where the sum cancels.
vf gelu_tanh(vf x) {
  vf const u = x + all(0.044715f) * x * x * x;
  return x / (all(1.0f) + exp(all(-1.5957691216057308f) * u)); // 2 sqrt(2 / pi)
}

// x times the normal distribution's share below x, from the share beyond |x|: half of erfc(|x| / sqrt 2), by the
// Chebyshev fit of Numerical Recipes (erfcc, within 1.2e-7 of the result). x^2 is split in two so that rounding it
// does not spoil the exponential.
vf gelu(vf x) {
  vf const size = min(x < vf{} ? -x : x, all(20.0f)); // nothing is left beyond
  vf const t = all(1.0f) / fma(size, all(0.35355339059327373f), all(1.0f));
  static const float fit[] = {0.17087277f,  -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f,
                              -0.18628806f, 0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
  vf p = all(fit[0]);
  for (int i = 1; i < 10; i++) p = fma(p, t, all(fit[i]));
  vf const high = from_bits(bits(size) & ~0xfff);
  vf const rest = (size - high) * (size + high) * all(-0.5f);
  vf const beyond = all(0.5f) * t * exp(high * high * all(-0.5f)) * exp(p + rest);
  return x * (x > vf{} ? all(1.0f) - beyond : beyond);
}

vf relu(vf x) { return x < vf{} ? vf{} : x; }

// As hotkernels/activation.py numbers them. The body is compiled once for each.
template <class F> void with_activation(int64_t kind, F&& body) {
  switch (kind) {
    case 0: return body([](vf x) { return silu(x); });
    case 1: return body([](vf x) { return gelu(x); });
    case 2: return body([](vf x) { return gelu_tanh(x); });
    case 3: return body([](vf x) { return relu(x); });
    case 4: return body([](vf x) { return relu(x) * relu(x); });
  }
}

} // namespace

// y = f(x), times `up` where it is not null. Shape: x, up and y [rows, n], x and up with rows x_stride apart.
EXPORT void activate(const float* x, const float* up, int64_t x_stride, float* y, int64_t y_stride, int64_t rows,
                     int64_t n, int64_t kind) {
  int64_t const columns = n < ENOUGH ? n : ENOUGH, of_row = columns == 0 ? 0 : (n + columns - 1) / columns;
  int64_t const rows_of_task = of_row == 1 ? ENOUGH / n : 1;
  int64_t const tasks = (rows + rows_of_task - 1) / rows_of_task * of_row;
  with_activation(kind, [&](auto f) {
    auto const part = [&](const float* in, const float* gated, float* out, int64_t count) {
      int64_t i = 0;
      for (; i + W <= count; i += W) store(out + i, gated == nullptr ? f(load(in + i)) : f(load(in + i)) * load(gated + i));
      int const rest = (int)(count - i);
      if (rest == 0) return;
      vf const last = f(load(in + i, rest));
      store(out + i, gated == nullptr ? last : last * load(gated + i, rest), rest);
    };
    auto const run = [&](int64_t task) {
      int64_t const first = task / of_row * rows_of_task, column = task % of_row * columns;
      int64_t const count = n - column < columns ? n - column : columns;
      for (int64_t row = first; row < rows && row < first + rows_of_task; row++) {
        int64_t const at = row * x_stride + column;
        part(x + at, up == nullptr ? nullptr : up + at, y + row * y_stride + column, count);
      }
    };
    if (tasks > 1) return parallel(tasks, run);
    for (int64_t task = 0; task < tasks; task++) run(task);
  });
}
OP(activate)
