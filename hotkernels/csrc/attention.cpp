// Attention over the paged cache, and what is stored there. See hotkernels/attention.py for what is computed.
#include <vector>

#include "attention_block.h"
#include "export.h"
#include "pool.h"
#include "program.h"

namespace {

struct Batch {
  const float* q; // [rows, heads, keys.size]
  int64_t q_row, q_head, heads;
  Side keys, values;
  Fetch fetch;
  const int32_t *row, *count, *start, *blocks;
  int64_t blocks_stride, block_size;
  float scaling, softcap;
  int64_t window;
  const float *sinks, *bias;
  int64_t bias_stride;
  float* out; // [rows, heads, values.size]

  int64_t group() const { return heads / keys.heads; }
  int64_t first_seen(int64_t position) const { return window > 0 ? std::max<int64_t>(0, position - window + 1) : 0; }
};

// Some query rows of one sequence and KV head: number i is of the sequence's row i / group, and of the group's head
// i % group. With a part, each run's result goes there by itself, to be merged later.
struct Task {
  int64_t sequence, kv_head, first, rows, first_run, end_run;
  int64_t part = -1; // where in Plan::parts

  int64_t runs() const { return end_run - first_run; }
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

class Block {
 public:
  Block(const Batch& batch, const Task& task)
      : b_(batch), t_(task), scratch_(Scratch::of(batch)), d_(padded(b_.keys.size)), dv_(padded(b_.values.size)) {
    for (int64_t i = 0; i < t_.rows; i++) {
      int64_t const row = (t_.first + i) / b_.group();
      rows_[i] = {b_.row[t_.sequence] + row, t_.kv_head * b_.group() + (t_.first + i) % b_.group(),
                  b_.start[t_.sequence] + row, 0, 0};
    }
  }

  void run(float* parts) {
    load_queries();
    Result const total = result_at(scratch_.total, t_.rows);
    clear(total);
    for (int64_t run = t_.first_run; run < t_.end_run; run++) {
      bool const is_part = t_.part >= 0;
      Result const result = result_at(is_part ? part_at(parts, run) : scratch_.run, t_.rows);
      attend(run, result);
      if (!is_part) merge_rows(total, result);
    }
    if (t_.part < 0) finish(total);
  }

  // Put together what other tasks left of this one's runs.
  void combine(float* parts) {
    Result const total = result_at(scratch_.total, t_.rows);
    clear(total);
    for (int64_t run = t_.first_run; run < t_.end_run; run++) merge_rows(total, result_at(part_at(parts, run), t_.rows));
    finish(total);
  }

 private:
  float* part_at(float* parts, int64_t run) const {
    return parts + t_.part + (run - t_.first_run) * result_size(t_.rows, b_);
  }

  void load_queries() {
    for (int64_t i = 0; i < t_.rows; i++) {
      const float* in = b_.q + rows_[i].row * b_.q_row + rows_[i].head * b_.q_head;
      float* out = scratch_.q + i * d_;
      for (int64_t k = 0; k < b_.keys.size; k++) out[k] = in[k] * b_.scaling;
      std::fill(out + b_.keys.size, out + d_, 0.0f);
    }
  }

  void clear(const Result& result) const {
    std::fill(result.masses, result.masses + t_.rows, Mass{});
    std::fill(result.values, result.values + t_.rows * dv_, 0.0f);
  }

  void merge_rows(const Result& total, const Result& part) const {
    for (int64_t i = 0; i < t_.rows; i++)
      merge(total.masses[i], total.values + i * dv_, part.masses[i], part.values + i * dv_, dv_);
  }

  // What the rows see of one run.
  void attend(int64_t run, const Result& result) {
    clear(result);
    int64_t const base = run * RUN;
    for (int64_t i = 0; i < t_.rows; i++) {
      rows_[i].from = std::max<int64_t>(b_.first_seen(rows_[i].position) - base, 0);
      rows_[i].to = std::min(rows_[i].position + 1 - base, RUN);
    }
    if (run == t_.first_run) now_ = find(run);
    next_ = run + 1 < t_.end_run ? find(run + 1) : Seen{};
    int64_t const first = now_.from / STRIP * STRIP;
    for (int64_t strip = first; strip < now_.to; strip += STRIP) multiply_keys(strip);
    for (int64_t i = 0; i < t_.rows; i++)
      if (rows_[i].from < rows_[i].to) {
        const float* bias = b_.bias == nullptr ? nullptr : b_.bias + rows_[i].head * b_.bias_stride + base;
        result.masses[i] = weigh(scratch_.logits + i * RUN, rows_[i].from, rows_[i].to, b_.softcap, bias);
      }
    for (int64_t strip = first; strip < now_.to; strip += STRIP) add_values_of(strip, result.values);
    now_ = next_;
  }

  // What any row sees of a run, and where that lies.
  struct Seen {
    int64_t from = 0, to = 0;
    int64_t slots[RUN];
  };

  Seen find(int64_t run) const {
    Seen seen;
    seen.from = std::max<int64_t>(b_.first_seen(rows_[0].position) - run * RUN, 0);
    seen.to = std::min(rows_[t_.rows - 1].position + 1 - run * RUN, RUN); // positions grow with rows
    const int32_t* blocks = b_.blocks + t_.sequence * b_.blocks_stride;
    int64_t block = (run * RUN + seen.from) / b_.block_size, offset = (run * RUN + seen.from) % b_.block_size;
    for (int64_t p = seen.from; p < seen.to; p++) {
      seen.slots[p] = blocks[block] * b_.block_size + offset;
      if (++offset == b_.block_size) offset = 0, block++;
    }
    return seen;
  }

  static Part part(const Side& side, const Seen& seen, int64_t strip) {
    return {&side, seen.slots + strip, std::max<int64_t>(seen.from - strip, 0), std::min(seen.to - strip, STRIP)};
  }

  void multiply_keys(int64_t strip) {
    b_.fetch(part(b_.keys, now_, strip), part(b_.values, now_, strip), t_.kv_head, scratch_.strip, scales_);
    for (int64_t i = 0; i < t_.rows; i++)
      if (rows_[i].from < strip + STRIP && rows_[i].to > strip)
        for (int64_t k = 0; k < STRIP; k += W) {
          vf const logit = products(scratch_.q + i * d_, scratch_.strip + k * W, d_);
          store(scratch_.logits + i * RUN + strip + k, b_.keys.scale == nullptr ? logit : logit * load(scales_ + k));
        }
  }

  // A row reads no value that it does not see: what lies there may not be a number.
  void add_values_of(int64_t strip, float* out) {
    b_.fetch(part(b_.values, now_, strip), part(b_.keys, next_, strip), t_.kv_head, scratch_.strip, scales_);
    for (int64_t i = 0; i < t_.rows;) {
      int64_t const from = std::max(rows_[i].from, strip) - strip, to = std::min(rows_[i].to, strip + STRIP) - strip;
      int64_t alike = 1;
      while (alike < ALIKE && i + alike < t_.rows && std::max(rows_[i + alike].from, strip) - strip == from &&
             std::min(rows_[i + alike].to, strip + STRIP) - strip == to)
        alike++;
      float* weights = scratch_.logits + i * RUN + strip;
      if (b_.values.scale != nullptr)
        for (int64_t row = 0; row < alike; row++)
          for (int64_t k = row * RUN; k < row * RUN + STRIP; k += W)
            store(weights + k, load(weights + k) * load(scales_ + k % RUN));
      if (from < to) ADD_STRIP[alike - 1](weights, scratch_.strip, from, to, out + i * dv_, dv_);
      i += alike;
    }
  }

  void finish(const Result& total) const {
    for (int64_t i = 0; i < t_.rows; i++) {
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
  Scratch& scratch_;
  int64_t const d_, dv_;
  Row rows_[ROWS];
  Seen now_, next_;
  float scales_[STRIP] = {};
};

// What a call shares out. A task that is large beside all others is cut into parts, its whole kept to combine them.
struct Plan {
  std::vector<Task> tasks, wholes;
  std::vector<float> parts;
};

std::vector<Task> whole_tasks(const Batch& b, int64_t sequences) {
  std::vector<Task> tasks;
  for (int64_t s = 0; s < sequences; s++)
    for (int64_t head = 0; head < b.keys.heads; head++)
      for (int64_t first = 0; first < b.count[s] * b.group(); first += ROWS) {
        int64_t const rows = std::min(b.count[s] * b.group() - first, ROWS);
        int64_t const low = b.start[s] + first / b.group(), high = b.start[s] + (first + rows - 1) / b.group();
        tasks.push_back({s, head, first, rows, b.first_seen(low) / RUN, high / RUN + 1});
      }
  return tasks;
}

// How long a task takes: fetching a run costs about as much as attending to it with some rows.
double cost(const Task& task) { return (double)(task.runs() * (task.rows + 4)); }

void cut(const Batch& b, Task task, int64_t pieces, Plan& plan) {
  int64_t const size = result_size(task.rows, b), first = task.first_run, runs = task.runs();
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
    int64_t const pieces = std::min(task.runs(), (int64_t)std::ceil(cost(task) / fair));
    if (num_threads() > 1 && pieces > 1 && (int64_t)plan.parts.size() < MOST_PARTS) cut(b, task, pieces, plan);
    else plan.tasks.push_back(task);
  }
  return plan;
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

template <class T> void store_row(const float* x, int64_t x_head, int64_t slot, const Side& side) {
  for (int64_t head = 0; head < side.heads; head++) {
    int64_t const at = slot * side.heads + head;
    store_head(x + head * x_head, side.size, const_cast<T*>(side.at<T>(slot, head)), const_cast<float*>(side.scale) + at);
  }
}

using StoreRow = void (*)(const float*, int64_t, int64_t, const Side&);
constexpr StoreRow STORE_ROW[] = {store_row<float>, store_row<bfloat16>, store_row<float16>, store_row<int8_t>};
} // namespace

// Shape: q [rows, heads, d] with q_row and q_head floats between rows and heads; keys [slots, kv_heads, d] and values
// [slots, kv_heads, dv] of the kind `stored`, with scales [slots, kv_heads] where that is int8; row, count, start
// [sequences]; blocks [sequences, blocks_stride]; sinks [heads] or null; bias [heads, ..] or null, bias_stride floats
// between heads; out [rows, heads, dv].
EXPORT void paged_attention(const float* q, int64_t q_row, int64_t q_head, int64_t rows, int64_t heads,
                            const void* keys, const void* values, const float* key_scale, const float* value_scale,
                            int64_t stored, int64_t kv_heads, int64_t d, int64_t dv, const int32_t* row,
                            const int32_t* count, const int32_t* start, const int32_t* blocks, int64_t sequences,
                            int64_t blocks_stride, int64_t block_size, float scaling, int64_t window, float softcap,
                            const float* sinks, const float* bias, int64_t bias_stride, float* out) {
  Batch const b{q, q_row, q_head, heads, {keys, key_scale, kv_heads, d}, {values, value_scale, kv_heads, dv},
                FETCH[stored], row, count, start, blocks, blocks_stride, block_size, scaling, softcap, window, sinks,
                bias, bias_stride, out};
  clear_others(b, sequences, rows);
  Plan plan = make_plan(b, sequences);
  parallel((int64_t)plan.tasks.size(), [&](int64_t i) { Block(b, plan.tasks[i]).run(plan.parts.data()); });
  parallel((int64_t)plan.wholes.size(), [&](int64_t i) { Block(b, plan.wholes[i]).combine(plan.parts.data()); });
}
OP(paged_attention)

// Shape: k [rows, kv_heads, d], v [rows, kv_heads, dv] with k_row, k_head, v_row, v_head floats between rows and heads;
// slots [rows]; the rest as above.
EXPORT void write_cache(const float* k, int64_t k_row, int64_t k_head, const float* v, int64_t v_row, int64_t v_head,
                        const int64_t* slots, int64_t rows, void* keys, void* values, float* key_scale,
                        float* value_scale, int64_t stored, int64_t kv_heads, int64_t d, int64_t dv) {
  constexpr int64_t AT_ONCE = 32;
  Side const key_side{keys, key_scale, kv_heads, d}, value_side{values, value_scale, kv_heads, dv};
  StoreRow const store_row = STORE_ROW[stored];
  parallel((rows + AT_ONCE - 1) / AT_ONCE, [&](int64_t task) {
    for (int64_t i = task * AT_ONCE; i < std::min(rows, (task + 1) * AT_ONCE); i++) {
      store_row(k + i * k_row, k_head, slots[i], key_side);
      store_row(v + i * v_row, v_head, slots[i], value_side);
    }
  });
}
OP(write_cache)
