#pragma once

#include "linear.h"

// The product by tiles of bytes, bit for bit what linear_codes computes. False where the processor has none, where the
// format does not fit into bytes, or where too few rows make it slower; nothing is done then.
bool linear_bytes(const Weight& weight, const float* x, int64_t x_stride, int64_t rows, const Result& result);
