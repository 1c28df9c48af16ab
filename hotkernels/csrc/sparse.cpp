// Sums of weighted rows: products with sparse matrices. See hotkernels/products.py for what is computed.
#include "export.h"
#include "pool.h"
#include "stored.h"

namespace {

constexpr int64_t OUTPUTS = 64; // of a task

template <class T> float number(const T* p) { return load(p, 1)[0]; }

} // namespace

// y[o] = sum of values[i] * x[inputs[i]] over starts[o] <= i < starts[o + 1], in order.
// Shape: x [in, n], rows x_stride apart; starts [out + 1]; y [out, n] without gaps.
EXPORT void weighted_rows(const float* x, int64_t x_stride, const int32_t* starts, const int32_t* inputs,
                          const void* values, int64_t stored, float* y, int64_t out, int64_t n) {
  with_stored(values, stored, [&](auto* weights) {
    parallel((out + OUTPUTS - 1) / OUTPUTS, [&](int64_t task) {
      for (int64_t o = task * OUTPUTS; o < out && o < (task + 1) * OUTPUTS; o++)
        for (int64_t c = 0; c < n; c += W) {
          int const lanes = n - c < W ? (int)(n - c) : W;
          vf sum{};
          for (int64_t i = starts[o]; i < starts[o + 1]; i++) {
            const float* const row = x + inputs[i] * x_stride + c;
            sum = fma(all(number(weights + i)), lanes == W ? load(row) : load(row, lanes), sum);
          }
          store(y + o * n + c, sum, lanes);
        }
    });
  });
}
