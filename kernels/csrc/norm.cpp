// Norms of rows. See kernels/norm.py for what is computed.
#include "export.h"
#include "pool.h"
#include "simd.h"

// Shape: x [rows, n] with x_stride floats between rows, weight [n], y [rows, n].
EXPORT void rms_norm(const float* x, int64_t x_stride, const float* weight, float offset, float eps, float* y,
                     int64_t rows, int64_t n) {
  parallel((rows + 7) / 8, [&](int64_t task) {
    int64_t const end = task * 8 + 8 < rows ? task * 8 + 8 : rows;
    for (int64_t row = task * 8; row < end; row++) {
      const float* in = x + row * x_stride;
      float* out = y + row * n;
      vf squares{};
      int64_t i = 0;
      for (; i + W <= n; i += W) squares = fma(load(in + i), load(in + i), squares);
      vf tail = load(in + i, (int)(n - i));
      float const scale = 1.0f / std::sqrt(sum(fma(tail, tail, squares)) / (float)n + eps);
      for (i = 0; i + W <= n; i += W) store(out + i, load(in + i) * all(scale) * (load(weight + i) + all(offset)));
      int const rest = (int)(n - i);
      store(out + i, load(in + i, rest) * all(scale) * (load(weight + i, rest) + all(offset)), rest);
    }
  });
}
