// Threads that share the tasks of one op after another. Between ops they wait without burning: a moment of spinning,
// then sleep. Tasks are claimed one by one, so a thread that the machine takes away holds up one task only. Every thread
// begins with a part of the tasks that is its own: of the same rows in one op after another, which stay in its caches.
#pragma once

#include <cstdint>

// Calls body(context, i) once for every 0 <= i < count, in any order and on any thread, and returns when all are done.
// What a task computes must not depend on which thread runs it. Runs on the caller alone where the pool is in use.
void run_tasks(int64_t count, void (*body)(void*, int64_t), void* context);

// The same for a callable: parallel(count, [&](int64_t i) { ... }).
template <class F> static inline void parallel(int64_t count, const F& f) {
  run_tasks(count, [](void* context, int64_t i) { (*static_cast<const F*>(context))(i); }, (void*)&f);
}

// Whether a thread begins with task i of `count`; it goes on with i + 1.
bool begins_thread(int64_t i, int64_t count);

int num_threads();
