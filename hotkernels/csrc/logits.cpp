// The largest numbers of long rows, and log-probabilities. See hotkernels/logits.py for what is computed.
#include <algorithm>

#include "export.h"
#include "pool.h"
#include "simd.h"

namespace {

// The largest number of a row and its first place; NaN and its first place where there is one.
struct Best { float value; int64_t place; };

Best best_of(const float* row, int64_t n) {
  vf best = all(-INFINITY);
  vi places{}, lane{}, nans{};
  for (int i = 0; i < W; i++) lane[i] = i;
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    vf const v = load(row + i);
    vi const here = lane + (int32_t)i;
    places = v > best ? here : places;
    best = v > best ? v : best;
    nans |= v != v;
  }
  Best found{-INFINITY, n};
  for (int l = 0; l < W && i > 0; l++)
    if (best[l] > found.value || (best[l] == found.value && places[l] < found.place)) found = {best[l], places[l]};
  bool odd = largest((vf)(nans & bits(all(1.0f)))) != 0.0f;
  for (; i < n; i++) {
    if (row[i] > found.value) found = {row[i], i};
    odd |= row[i] != row[i];
  }
  if (found.place == n || found.value == -INFINITY) found.place = 0;
  if (!odd) return found;
  for (i = 0; i < n; i++)
    if (row[i] != row[i]) return {row[i], i};
  return found;
}

// log(sum(exp(row - largest))), in four chains of vectors.
float log_sum(const float* row, float largest, int64_t n) {
  vf chains[4] = {};
  vf const top = all(largest);
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W)
    for (int c = 0; c < 4; c++) chains[c] += exp(load(row + i + c * W) - top);
  for (int c = 0; i + W <= n; i += W, c++) chains[c] += exp(load(row + i) - top);
  if (i < n) {
    float rest[W];
    store(rest, all(-INFINITY));
    for (int l = 0; i + l < n; l++) rest[l] = row[i + l];
    chains[3] += exp(load(rest) - top);
  }
  return std::log(sum((chains[0] + chains[1]) + (chains[2] + chains[3])));
}

// The k largest, descending, equal ones by place. k <= n.
void largest_of(const float* row, int64_t n, int64_t k, float* values, int64_t* places) {
  int64_t held = 0;
  auto const take = [&](int64_t i) {
    if (held == k && !(row[i] > values[k - 1])) return;
    int64_t at = held < k ? held++ : k - 1;
    for (; at > 0 && row[i] > values[at - 1]; at--) values[at] = values[at - 1], places[at] = places[at - 1];
    values[at] = row[i], places[at] = i;
  };
  int64_t i = 0;
  for (; i < k; i++) take(i);
  for (; i + W <= n; i += W) {
    vi const above = load(row + i) > all(values[k - 1]);
    if (largest((vf)(above & bits(all(1.0f)))) == 0.0f) continue;
    for (int l = 0; l < W; l++) take(i + l);
  }
  for (; i < n; i++) take(i);
}

} // namespace

// Shape: logits [rows, n], rows stride apart; values, places [rows].
EXPORT void argmax(const float* logits, int64_t stride, int64_t rows, int64_t n, float* values, int64_t* places) {
  parallel(rows, [&](int64_t r) {
    Best const best = best_of(logits + r * stride, n);
    values[r] = best.value, places[r] = best.place;
  });
}

// Shape: logits as above; chosen [rows] places, told [rows] their log-probabilities; values, places [rows, k].
EXPORT void log_probabilities(const float* logits, int64_t stride, int64_t rows, int64_t n, const int64_t* chosen,
                              float* told, int64_t k, float* values, int64_t* places) {
  parallel(rows, [&](int64_t r) {
    const float* const row = logits + r * stride;
    float const top = best_of(row, n).value, rest = log_sum(row, top, n);
    told[r] = row[chosen[r]] - top - rest;
    if (k == 0) return;
    largest_of(row, n, k, values + r * k, places + r * k);
    for (int64_t i = 0; i < k; i++) values[r * k + i] = values[r * k + i] - top - rest;
  });
}
