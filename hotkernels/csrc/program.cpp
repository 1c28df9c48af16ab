// Runs calls that were written down before. See hotkernels/program.py.
#include "program.h"

#include "export.h"

// Shape: words [size]: of each call the op, a bit for each argument that is a variable, and the arguments. Those that
// are variables hold its number in the lowest 16 bits, and what is added to it in the others.
EXPORT void run_program(const int64_t* words, int64_t size, const int64_t* variables) {
  for (const int64_t* const end = words + size; words < end;) {
    const Op* const op = from_word<const Op*>(words[0]);
    int64_t const variable = words[1];
    words += 2;
    int64_t arguments[64];
    for (int64_t i = 0; i < op->count; i++, words++)
      arguments[i] = variable >> i & 1 ? variables[*words & 0xffff] + (*words >> 16) : *words;
    op->call(arguments);
  }
}
