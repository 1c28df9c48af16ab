// Linear maps whose weights stay packed. See hotkernels/linear.py for what is computed, and linear.h for how weights lie.
#include "linear.h"

#include "export.h"
#include "linear_maps.h"
#include "program.h"

namespace {

void product(const Weight& weight, const float* x, int64_t x_stride, int64_t rows, const Result& result) {
  if (rows > 0) (weight.kind <= FLOAT16 ? linear_floats : linear_codes)(weight, x, x_stride, rows, result);
}

} // namespace

EXPORT void linear(const Weight* weight, const float* x, int64_t x_stride, int64_t rows, const float* bias, float* y,
                   int64_t y_stride) {
  static Fetches const nothing;
  product(*weight, x, x_stride, rows, {bias, y, y_stride, &nothing});
}
OP(linear)

EXPORT void linear_updated(const Weight* weight, const float* x, int64_t x_stride, int64_t rows, const float* bias,
                           float* y, int64_t y_stride, const Map* maps, int64_t map_count, const Segment* segments,
                           int64_t segment_count) {
  static thread_local Fetches factors;
  Updates const updates{maps, map_count, segments, segment_count};
  list_factors(updates, weight->in_features, factors);
  product(*weight, x, x_stride, rows, {bias, y, y_stride, &factors});
  add_updates(updates, x, x_stride, y, y_stride, weight->in_features);
}
