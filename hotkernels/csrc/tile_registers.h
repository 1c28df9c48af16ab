// The registers of the processor's products of tiles (AMX).
#pragma once

#if defined(__AMX_TILE__) && defined(__linux__)

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <initializer_list>

#include "simd.h"

// Whether they may be used: Linux lends them to processes that ask.
static inline bool tiles_permitted() {
  static bool const given = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0;
  return given;
}

// While this lives, the thread has tile registers of given shapes.
class TileRegisters {
 public:
  struct Shape {
    int64_t rows, row_bytes;
  };
  explicit TileRegisters(std::initializer_list<Shape> shapes) {
    Configuration all{};
    all.palette = 1;
    int i = 0;
    for (Shape const& shape : shapes) {
      all.rows[i] = (uint8_t)shape.rows;
      all.row_bytes[i++] = (uint16_t)shape.row_bytes;
    }
    asm volatile("" ::"r"(&all) : "memory"); // the load below reads more of it than it tells the compiler
    _tile_loadconfig(&all);
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

 private:
  struct Configuration {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
};

// Inlines before the compiler decides what stays in registers: what is in memory may be changed by the reads of tiles,
// as far as it knows.
#define INLINE inline __attribute__((always_inline))

#endif
