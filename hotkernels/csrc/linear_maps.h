// Linear maps as other ops call them. Their weights are a matter of linear.h.
#pragma once

#include "export.h"
#include "low_rank.h"

struct Weight;

// Shape: x [rows, in_features], x_stride floats between rows; bias [out_features] or null; y [rows, out_features].
EXPORT void linear(const Weight* weight, const float* x, int64_t x_stride, int64_t rows, const float* bias, float* y,
                   int64_t y_stride);
// The same, and then add_low_rank; what that reads is fetched meanwhile.
EXPORT void linear_updated(const Weight* weight, const float* x, int64_t x_stride, int64_t rows, const float* bias,
                           float* y, int64_t y_stride, const Map* maps, int64_t map_count, const Segment* segments,
                           int64_t segment_count);
