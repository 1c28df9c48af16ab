#pragma once

#include "linear.h"

// The product by tiles of bf16, bit for bit what linear_codes computes. False where the processor has none, where the
// format does not fit, or where too few rows make it slower; nothing is done then.
bool linear_halves(const Weight& weight, const float* x, int64_t x_stride, int64_t rows, const Result& result);
