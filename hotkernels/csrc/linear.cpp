// Linear maps whose weights stay packed. See hotkernels/linear.py for what is computed, and linear.h for how weights lie.
#include "linear.h"

#include "export.h"

// Shape: x [rows, in_features], x_stride floats between rows; bias [out_features] or null; y [rows, out_features].
EXPORT void linear(const Weight* weight, const float* x, int64_t x_stride, int64_t rows, const float* bias, float* y,
                   int64_t y_stride) {
  if (rows == 0) return;
  (weight->kind <= FLOAT16 ? linear_floats : linear_codes)(*weight, x, x_stride, rows, Result{bias, y, y_stride});
}
