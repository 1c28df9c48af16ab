// Rows of packed tables as floats. See hotkernels/linear.py for what is computed, and linear.h for how weights lie.
#include "export.h"
#include "linear.h"

namespace {

// A float of a type, by itself.
float float_at(const uint8_t* p, int64_t kind) {
  if (kind == FLOAT32) return load_as<float>(p);
  uint8_t alone[2 * W] = {p[0], p[1]};
  return (kind == FLOAT16 ? widen<FLOAT16>(alone) : widen<BFLOAT16>(alone))[0];
}

// The numbers of one output feature, `row` of a tile of floats.
void take_floats(const Weight& weight, const uint8_t* tile, int row, float* y) {
  int const bytes = float_bytes(weight.kind);
  for (int64_t k = 0; k < weight.in_features; k++) y[k] = float_at(tile + (k * TILE + row) * bytes, weight.kind);
}

// The same of a tile of codes. Not fused: rounded twice, as the twin does.
void take_codes(const Weight& weight, const uint8_t* tile, int row, float* y) {
  int const scale_bytes = float_bytes(weight.scale_type), minimum_bytes = float_bytes(weight.minimum_type);
  bool const is_4bit = weight.kind == CODES4;
  int const codes_a_unit = is_4bit ? 4 : 2;
  int64_t const units = weight.runs_a_block() * RUN / codes_a_unit;
  for (int64_t k = 0; k < weight.in_features; tile += units * UNIT) {
    float const scale = float_at(tile + row * scale_bytes, weight.scale_type);
    tile += TILE * scale_bytes;
    bool const has_minimum = weight.minimum_type != NONE;
    float minimum = has_minimum ? float_at(tile + row * minimum_bytes, weight.minimum_type) : 0.0f;
    if (weight.zero) minimum = -(float)weight.zero * scale;
    tile += TILE * minimum_bytes;
    int64_t const end = k + weight.block;
    for (const uint8_t* unit = tile + 2 * row; k < end; unit += UNIT)
      for (int i = 0; i < codes_a_unit && k < end; i++, k++) {
        uint8_t const byte = is_4bit ? unit[i / 2] >> i % 2 * 4 & 15 : unit[i];
        float const code = !is_4bit ? (float)(int8_t)byte : weight.book ? weight.book[byte] : (float)byte;
        y[k] = has_minimum || weight.zero ? code * scale + minimum : code * scale;
      }
  }
}

} // namespace

// Shape: indices [count]; y [count, in_features]. NaN where there is no such output feature.
EXPORT void take(const Weight* weight, const int64_t* indices, int64_t count, float* y) {
  int64_t const runs = weight->runs() * RUN;
  int64_t const header = TILE * (float_bytes(weight->scale_type) + float_bytes(weight->minimum_type));
  bool const is_float = weight->kind <= FLOAT16;
  int64_t const tile_bytes = is_float ? weight->in_features * TILE * float_bytes(weight->kind)
                                      : weight->blocks() * header + runs * UNIT / (weight->kind == CODES4 ? 4 : 2);
  for (int64_t i = 0; i < count; i++, y += weight->in_features) {
    if (indices[i] < 0 || indices[i] >= weight->out_features) {
      for (int64_t k = 0; k < weight->in_features; k++) y[k] = NAN;
      continue;
    }
    const uint8_t* tile = weight->tiles + indices[i] / TILE * tile_bytes;
    (is_float ? take_floats : take_codes)(*weight, tile, (int)(indices[i] % TILE), y);
  }
}
