// Attention over the paged cache, and what is stored there. See hotkernels/attention.py for what is computed.
#include <vector>

#include "attention_places.h"
#include "export.h"
#include "pool.h"
#include "program.h"

namespace {

constexpr int64_t ROWS = 32;  // query rows of a task
constexpr int64_t FEW = 8;    // rows up to which numbers are read where they lie; more share a copy in floats
constexpr int64_t STRIP = 32; // positions of that copy, a multiple of W

struct Batch {
  const float* q; // [rows, heads, keys.size]
  int64_t q_row, q_head, heads;
  Side keys, values;
  const int32_t *row, *count, *start, *blocks;
  int64_t blocks_stride, block_size, page_size;
  float scaling, softcap;
  int64_t window;
  const float *sinks, *bias;
  int64_t bias_stride;
  float* out; // [rows, heads, values.size]

  int64_t group() const { return heads / keys.heads; }
  int64_t first_seen(int64_t position) const { return window > 0 ? std::max<int64_t>(0, position - window + 1) : 0; }
};

// Some query rows of one sequence and of some KV heads: number i of a KV head is of the sequence's row i / group, and of
// the group's head i % group. With a part, each run's result goes there by itself, to be merged later.
struct Task {
  int64_t sequence, kv_head, kv_heads, first, rows, first_run, end_run;
  int64_t part = -1; // where in Plan::parts

  int64_t runs() const { return end_run - first_run; }
  int64_t all_rows() const { return kv_heads * rows; }
  int64_t lowest(const Batch& b) const { return b.start[sequence] + first / b.group(); } // position of a row
  int64_t highest(const Batch& b) const { return b.start[sequence] + (first + rows - 1) / b.group(); }
};

// A result of one run, or of all: the rows' masses, then their values.
struct Result {
  Mass* masses;
  float* values;
};
int64_t result_size(int64_t rows, const Batch& b) { return rows * (2 + padded(b.values.size)); }
Result result_at(float* at, int64_t rows) { return {reinterpret_cast<Mass*>(at), at + 2 * rows}; }

// Memory of a thread, kept from task to task.
struct Scratch {
  std::vector<float> memory;
  float *q, *logits, *strip, *run, *total;

  static Scratch& of(const Batch& b) {
    static thread_local Scratch scratch;
    int64_t const d = padded(b.keys.size), dv = padded(b.values.size);
    int64_t const sizes[] = {ROWS * d, ROWS * RUN, STRIP * std::max(d, dv), result_size(ROWS, b), result_size(ROWS, b)};
    int64_t sum = 16;
    for (int64_t size : sizes) sum += (size + 15) / 16 * 16;
    if ((int64_t)scratch.memory.size() < sum) scratch.memory.resize(sum);
    float* at = scratch.memory.data();
    at += (64 - reinterpret_cast<uintptr_t>(at) % 64) % 64 / 4;
    float** parts[] = {&scratch.q, &scratch.logits, &scratch.strip, &scratch.run, &scratch.total};
    for (int i = 0; i < 5; i++) *parts[i] = at, at += (sizes[i] + 15) / 16 * 16;
    return scratch;
  }
};

// Computes a task over a cache of type T.
template <class T> class Block {
 public:
  Block(const Batch& batch, const Task& task, const Task* then = nullptr)
      : b_(batch), t_(task), then_(then), scratch_(Scratch::of(batch)), d_(padded(b_.keys.size)), dv_(padded(b_.values.size)) {
    for (int64_t i = 0; i < t_.all_rows(); i++) {
      int64_t const kv_head = t_.kv_head + i / t_.rows, number = t_.first + i % t_.rows, row = number / b_.group();
      rows_[i] = {b_.row[t_.sequence] + row, kv_head * b_.group() + number % b_.group(), b_.start[t_.sequence] + row, 0, 0};
    }
  }

  void run(float* parts, bool is_first) {
    load_queries();
    Result const total = result_at(scratch_.total, t_.all_rows());
    clear(total);
    find(t_, t_.first_run);
    for (int64_t k = 0; k < t_.kv_heads && is_first; k++)
      for (int side : {KEYS, VALUES}) later(side, k).ask(next().from, RUN);
    for (int64_t run = t_.first_run; run < t_.end_run; run++) {
      bool const is_part = t_.part >= 0;
      Result const result = result_at(is_part ? part_at(parts, run) : scratch_.run, t_.all_rows());
      clear(result);
      attend(run, result);
      if (!is_part) merge_rows(total, result);
    }
    if (t_.part < 0) finish(total);
  }

  // Put together what other tasks left of this one's runs.
  void combine(float* parts) {
    Result const total = result_at(scratch_.total, t_.all_rows());
    clear(total);
    for (int64_t run = t_.first_run; run < t_.end_run; run++)
      merge_rows(total, result_at(part_at(parts, run), t_.all_rows()));
    finish(total);
  }

 private:
  enum { KEYS, VALUES };

  // What any row sees of a run, and where that lies. Beyond it, to whole vectors, stand places of what is seen.
  struct Seen {
    int64_t kv_head, kv_heads, from, to;
    Places places[2]; // of keys and of values

    int64_t begin() const { return from / W * W; }
    int64_t end() const { return padded(to); }
  };

  float* part_at(float* parts, int64_t run) const {
    return parts + t_.part + (run - t_.first_run) * result_size(t_.all_rows(), b_);
  }

  void load_queries() {
    for (int64_t i = 0; i < t_.all_rows(); i++) {
      const float* in = b_.q + rows_[i].row * b_.q_row + rows_[i].head * b_.q_head;
      float* out = scratch_.q + i * d_;
      for (int64_t k = 0; k < b_.keys.size; k++) out[k] = in[k] * b_.scaling;
      std::fill(out + b_.keys.size, out + d_, 0.0f);
    }
  }

  void clear(const Result& result) const {
    std::fill(result.masses, result.masses + t_.all_rows(), Mass{});
    std::fill(result.values, result.values + t_.all_rows() * dv_, 0.0f);
  }

  void merge_rows(const Result& total, const Result& part) const {
    for (int64_t i = 0; i < t_.all_rows(); i++)
      merge(total.masses[i], total.values + i * dv_, part.masses[i], part.values + i * dv_, dv_);
  }

  // What the rows see of one run, one KV head after the other: what lies side by side is read together.
  void attend(int64_t run, const Result& result) {
    for (int64_t i = 0; i < t_.all_rows(); i++) {
      rows_[i].from = std::max<int64_t>(b_.first_seen(rows_[i].position) - run * RUN, 0);
      rows_[i].to = std::min(rows_[i].position + 1 - run * RUN, RUN);
    }
    number_ ^= 1;
    if (run + 1 < t_.end_run) find(t_, run + 1);
    else if (then_ != nullptr) find(*then_, then_->first_run);
    else next().to = 0;
    for (int64_t k = 0; k < t_.kv_heads; k++) {
      int64_t const head = t_.kv_head + k, first = k * t_.rows;
      multiply_keys(head, first, later(KEYS, k));
      weigh_rows(run, head, first, result);
      add_values_of(head, first, later(VALUES, k), result.values);
    }
  }

  const Side& side(int i) const { return i == KEYS ? b_.keys : b_.values; }
  Seen& now() { return seen_[number_]; }
  Seen& next() { return seen_[number_ ^ 1]; }

  // Makes a run of a task the next one.
  void find(const Task& task, int64_t run) {
    Seen& seen = next();
    seen.kv_head = task.kv_head, seen.kv_heads = task.kv_heads;
    seen.from = std::max<int64_t>(b_.first_seen(task.lowest(b_)) - run * RUN, 0);
    seen.to = std::min(task.highest(b_) + 1 - run * RUN, RUN);
    const int32_t* blocks = b_.blocks + task.sequence * b_.blocks_stride;
    int64_t block = (run * RUN + seen.from) / b_.block_size, offset = (run * RUN + seen.from) % b_.block_size;
    for (int64_t p = seen.from, end; p < seen.to; p = end, block++, offset = 0) {
      end = std::min(p + b_.block_size - offset, seen.to);
      Slot const first(blocks[block] * b_.block_size + offset, b_.page_size);
      for (int i : {KEYS, VALUES}) seen.places[i].put(side(i), first, p, end);
    }
    for (int i : {KEYS, VALUES}) {
      seen.places[i].repeat(side(i), seen.from, seen.begin(), seen.from);
      seen.places[i].repeat(side(i), seen.from, seen.to, seen.end());
    }
  }

  // The next run's keys or values of its KV head number k.
  Later later(int i, int64_t k) {
    Lines<T> const lines = side(i).template lines<T>(next().kv_head + k, next().places[i].numbers);
    return {reinterpret_cast<const char*>(lines.data), (int64_t)sizeof(T), lines.size * (int64_t)sizeof(T), lines.places,
            next().from, k < next().kv_heads ? next().to : 0};
  }

  void multiply_keys(int64_t head, int64_t first, const Later& soon) {
    Lines<T> const keys = b_.keys.lines<T>(head, now().places[KEYS].numbers);
    if (t_.rows <= FEW) return multiply_rows(keys, first, now().begin(), now().end(), 0, soon);
    for (int64_t strip = now().begin(); strip < now().end(); strip += STRIP) {
      int64_t const end = std::min(strip + STRIP, now().end());
      multiply_rows(copy(keys, strip, end, soon), first, 0, end - strip, strip, {});
    }
  }

  // Positions from .. to of the lines are base + from .. of the run.
  template <class U>
  void multiply_rows(const Lines<U>& keys, int64_t first, int64_t from, int64_t to, int64_t base, Later soon) {
    for (int64_t i = first, rows; i < first + t_.rows; i += rows, soon.to = 0) {
      rows = at_once(first + t_.rows - i);
      Tiles<U>::MULTIPLY[rows - 1](scratch_.q + i * d_, d_, keys, from, to, scratch_.logits + i * RUN + base, soon);
    }
  }

  // How many of the rows left share what is read: no last one alone.
  static int64_t at_once(int64_t left) {
    return left > MOST_ROWS && left < 2 * MOST_ROWS ? (left + 1) / 2 : std::min<int64_t>(left, MOST_ROWS);
  }

  Lines<float> copy(const Lines<T>& lines, int64_t from, int64_t to, const Later& soon) {
    int64_t const size = padded(lines.size);
    soon.ask(from, to - from);
    for (int64_t p = from; p < to; p++) {
      float* out = scratch_.strip + (p - from) * size;
      int64_t i = 0;
      for (; i + W <= lines.size; i += W) store(out + i, load(lines[p] + i));
      if (i < lines.size) store(out + i, load(lines[p] + i, (int)(lines.size - i)));
      copied_[p - from] = (p - from) * size;
    }
    return {scratch_.strip, size, copied_};
  }

  void weigh_rows(int64_t run, int64_t head, int64_t first, const Result& result) {
    const float* scales[] = {read_scales(KEYS, head), read_scales(VALUES, head)};
    for (int64_t i = first; i < first + t_.rows; i++) {
      Row const& row = rows_[i];
      if (row.from >= row.to) continue;
      const float* bias = b_.bias == nullptr ? nullptr : b_.bias + row.head * b_.bias_stride + run * RUN;
      result.masses[i] = weigh(scratch_.logits + i * RUN, row.from, row.to, b_.softcap, bias, scales[0], scales[1]);
    }
  }

  const float* read_scales(int i, int64_t head) {
    if (side(i).scale == nullptr) return nullptr;
    for (int64_t p = now().begin(); p < now().end(); p++) scales_[i][p] = side(i).scale[now().places[i].scales[p] + head];
    return scales_[i];
  }

  void add_values_of(int64_t head, int64_t first, const Later& soon, float* out) {
    Lines<T> const values = b_.values.lines<T>(head, now().places[VALUES].numbers);
    if (t_.rows <= FEW) return add_rows(values, first, now().from, now().to, 0, soon, out);
    for (int64_t strip = now().begin(); strip < now().to; strip += STRIP) {
      int64_t const end = std::min(strip + STRIP, now().to);
      add_rows(copy(values, strip, end, soon), first, 0, end - strip, strip, {}, out);
    }
  }

  // A row reads no value that it does not see, as what lies there may not be a number: what only some of those at once
  // see is added to each alone.
  template <class U>
  void add_rows(const Lines<U>& values, int64_t first, int64_t from, int64_t to, int64_t base, Later soon, float* out) {
    auto const add = [&](int64_t i, int64_t rows, int64_t low, int64_t high) {
      if (low < high)
        Tiles<U>::ADD_VALUES[rows - 1](scratch_.logits + i * RUN + base, values, low, high, out + i * dv_, dv_, soon);
    };
    auto const low = [&](const Row& row) { return std::max(row.from - base, from); };
    auto const high = [&](const Row& row) { return std::min(row.to - base, to); };
    for (int64_t i = first, rows; i < first + t_.rows; i += rows, soon.to = 0) {
      rows = at_once(first + t_.rows - i);
      int64_t begin = from, end = to; // what all see
      for (int64_t r = i; r < i + rows; r++) begin = std::max(begin, low(rows_[r])), end = std::min(end, high(rows_[r]));
      if (begin >= end) begin = end = to;
      for (int64_t r = i; r < i + rows; r++) add(r, 1, low(rows_[r]), std::min(begin, high(rows_[r])));
      add(i, rows, begin, end);
      for (int64_t r = i; r < i + rows; r++) add(r, 1, std::max(end, low(rows_[r])), high(rows_[r]));
    }
  }

  void finish(const Result& total) const {
    for (int64_t i = 0; i < t_.all_rows(); i++) {
      Mass mass = total.masses[i];
      const float* values = total.values + i * dv_;
      float* out = b_.out + (rows_[i].row * b_.heads + rows_[i].head) * b_.values.size;
      float scale = 1;
      if (b_.sinks != nullptr) {
        float const sink = b_.sinks[rows_[i].head], top = sink > mass.largest ? sink : mass.largest;
        scale = exp(all(mass.largest - top))[0];
        mass.sum = mass.sum * scale + exp(all(sink - top))[0];
      }
      for (int64_t k = 0; k < b_.values.size; k++) out[k] = values[k] * scale / mass.sum;
    }
  }

  struct Row {
    int64_t row, head, position;
    int64_t from, to; // what it sees of the run at hand
  };

  const Batch& b_;
  const Task& t_;
  const Task* const then_;
  Scratch& scratch_;
  int64_t const d_, dv_;
  Row rows_[ROWS];
  Seen seen_[2]; // of the run at hand and of the next one
  int number_ = 0;
  int64_t copied_[STRIP];
  float scales_[2][RUN];
};

// What a call shares out. A task that is large beside all others is cut into parts, its whole kept to combine them.
struct Plan {
  std::vector<Task> tasks, wholes;
  std::vector<float> parts;
};

// Few rows of a sequence take all its KV heads together, which reads memory in order, but where threads would be idle.
int64_t kv_heads_at_once(const Batch& b, int64_t sequences, int64_t rows) {
  int64_t runs = 0;
  for (int64_t s = 0; s < sequences; s++) runs += (b.start[s] + b.count[s] - b.first_seen(b.start[s])) / RUN + 1;
  bool const is_enough = num_threads() == 1 || runs >= 4 * num_threads();
  return rows <= FEW && is_enough ? std::min(b.keys.heads, ROWS / rows) : 1;
}

std::vector<Task> whole_tasks(const Batch& b, int64_t sequences) {
  std::vector<Task> tasks;
  for (int64_t s = 0; s < sequences; s++) {
    int64_t const all_rows = b.count[s] * b.group();
    int64_t const kv_heads = kv_heads_at_once(b, sequences, all_rows);
    for (int64_t head = 0; head < b.keys.heads; head += kv_heads)
      for (int64_t first = 0; first < all_rows; first += ROWS) {
        int64_t const rows = std::min(all_rows - first, ROWS), heads = std::min(kv_heads, b.keys.heads - head);
        Task task{s, head, heads, first, rows, 0, 0};
        task.first_run = b.first_seen(task.lowest(b)) / RUN, task.end_run = task.highest(b) / RUN + 1;
        tasks.push_back(task);
      }
  }
  return tasks;
}

// How long a task takes: fetching a run costs about as much as attending to it with some rows.
double cost(const Task& task) { return (double)(task.runs() * task.kv_heads * (task.rows + 4)); }

void cut(const Batch& b, Task task, int64_t pieces, Plan& plan) {
  int64_t const size = result_size(task.all_rows(), b), first = task.first_run, runs = task.runs();
  task.part = (int64_t)plan.parts.size();
  plan.parts.resize(plan.parts.size() + runs * size);
  plan.wholes.push_back(task);
  for (int64_t piece = 0; piece < pieces; piece++) {
    Task part = task;
    part.first_run = first + runs * piece / pieces, part.end_run = first + runs * (piece + 1) / pieces;
    part.part += (part.first_run - first) * size;
    plan.tasks.push_back(part);
  }
}

Plan make_plan(const Batch& b, int64_t sequences) {
  constexpr int64_t TASKS_PER_THREAD = 4, MOST_PARTS = 1 << 24;
  Plan plan;
  std::vector<Task> const tasks = whole_tasks(b, sequences);
  double total = 0;
  for (Task const& task : tasks) total += cost(task);
  double const fair = total / (double)(num_threads() * TASKS_PER_THREAD);
  for (Task const& task : tasks) {
    int64_t const pieces = std::min(task.runs(), (int64_t)std::round(cost(task) / fair));
    if (num_threads() > 1 && pieces > 1 && (int64_t)plan.parts.size() < MOST_PARTS) cut(b, task, pieces, plan);
    else plan.tasks.push_back(task);
  }
  return plan;
}

template <class T> void run_tasks_of(const Batch& b, Plan& plan) {
  int64_t const count = (int64_t)plan.tasks.size();
  parallel(count, [&](int64_t i) {
    const Task* const then = i + 1 < count ? &plan.tasks[i + 1] : nullptr;
    Block<T>(b, plan.tasks[i], then).run(plan.parts.data(), begins_thread(i, count));
  });
  parallel((int64_t)plan.wholes.size(), [&](int64_t i) { Block<T>(b, plan.wholes[i]).combine(plan.parts.data()); });
}

// Rows of no sequence are 0.
void clear_others(const Batch& b, int64_t sequences, int64_t rows) {
  std::vector<bool> is_owned(rows);
  for (int64_t s = 0; s < sequences; s++)
    for (int64_t i = 0; i < b.count[s]; i++) is_owned[b.row[s] + i] = true;
  int64_t const size = b.heads * b.values.size;
  for (int64_t row = 0; row < rows; row++)
    if (!is_owned[row]) std::fill(b.out + row * size, b.out + (row + 1) * size, 0.0f);
}

template <class T> void store_row(const float* x, int64_t x_head, Slot slot, const Side& side) {
  T* out = static_cast<T*>(const_cast<void*>(side.data)) + side.at(slot);
  float* scale = const_cast<float*>(side.scale) + side.scales_at(slot);
  for (int64_t head = 0; head < side.heads; head++)
    store_head(x + head * x_head, side.size, out + head * side.size, scale + head);
}

using StoreRow = void (*)(const float*, int64_t, Slot, const Side&);
// By type of the cache: FLOAT32, BFLOAT16, FLOAT16, INT8.
constexpr StoreRow STORE_ROW[] = {store_row<float>, store_row<bf16>, store_row<f16>, store_row<int8_t>};
using RunTasks = void (*)(const Batch&, Plan&);
constexpr RunTasks RUN_TASKS[] = {run_tasks_of<float>, run_tasks_of<bf16>, run_tasks_of<f16>, run_tasks_of<int8_t>};
} // namespace

// Shape: q [rows, heads, d] with q_row and q_head floats between rows and heads; keys [pages, page_size, kv_heads, d]
// and values [pages, page_size, kv_heads, dv] of the kind `stored`, keys_apart and values_apart numbers from page to
// page, and scales [pages, page_size, kv_heads] where that is int8, scales_apart; row, count, start [sequences]; blocks
// [sequences, blocks_stride], of block_size slots, whole ones of which make a page; sinks [heads] or null; bias [heads,
// ..] or null, bias_stride floats between heads; out [rows, heads, dv].
EXPORT void paged_attention(const float* q, int64_t q_row, int64_t q_head, int64_t rows, int64_t heads,
                            const void* keys, const void* values, const float* key_scale, const float* value_scale,
                            int64_t page_size, int64_t keys_apart, int64_t values_apart, int64_t scales_apart,
                            int64_t stored, int64_t kv_heads, int64_t d, int64_t dv, const int32_t* row,
                            const int32_t* count, const int32_t* start, const int32_t* blocks, int64_t sequences,
                            int64_t blocks_stride, int64_t block_size, float scaling, int64_t window, float softcap,
                            const float* sinks, const float* bias, int64_t bias_stride, float* out) {
  Side const key_side{keys, key_scale, keys_apart, scales_apart, kv_heads, d};
  Side const value_side{values, value_scale, values_apart, scales_apart, kv_heads, dv};
  Batch const b{q, q_row, q_head, heads, key_side, value_side, row, count, start, blocks, blocks_stride, block_size,
                page_size, scaling, softcap, window, sinks, bias, bias_stride, out};
  clear_others(b, sequences, rows);
  Plan plan = make_plan(b, sequences);
  RUN_TASKS[stored](b, plan);
}
OP(paged_attention)

// Shape: k [rows, kv_heads, d], v [rows, kv_heads, dv] with k_row, k_head, v_row, v_head floats between rows and heads;
// slots [rows]; the rest as above.
EXPORT void write_cache(const float* k, int64_t k_row, int64_t k_head, const float* v, int64_t v_row, int64_t v_head,
                        const int64_t* slots, int64_t rows, void* keys, void* values, float* key_scale,
                        float* value_scale, int64_t page_size, int64_t keys_apart, int64_t values_apart,
                        int64_t scales_apart, int64_t stored, int64_t kv_heads, int64_t d, int64_t dv) {
  constexpr int64_t AT_ONCE = 32;
  Side const key_side{keys, key_scale, keys_apart, scales_apart, kv_heads, d};
  Side const value_side{values, value_scale, values_apart, scales_apart, kv_heads, dv};
  StoreRow const store_row = STORE_ROW[stored];
  parallel((rows + AT_ONCE - 1) / AT_ONCE, [&](int64_t task) {
    for (int64_t i = task * AT_ONCE; i < std::min(rows, (task + 1) * AT_ONCE); i++) {
      Slot const slot(slots[i], page_size);
      store_row(k + i * k_row, k_head, slot, key_side);
      store_row(v + i * v_row, v_head, slot, value_side);
    }
  });
}
OP(write_cache)
