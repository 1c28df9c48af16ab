// Where keys and values lie in the paged cache. See hotkernels/attention.py.
#pragma once

#include "attention_block.h"

// A slot by the page that it is in.
struct Slot {
  int64_t page, place;

  Slot(int64_t number, int64_t page_size) : page(number / page_size), place(number % page_size) {}
};

// The keys of all slots, or their values: a page in one piece, and the next `apart` further on.
struct Side {
  const void* data;   // [pages, slots, heads, size]
  const float* scale; // [pages, slots, heads], of int8 alone
  int64_t apart, scales_apart, heads, size;

  int64_t at(Slot slot) const { return slot.page * apart + slot.place * heads * size; }
  int64_t scales_at(Slot slot) const { return slot.page * scales_apart + slot.place * heads; }

  template <class T> Lines<T> lines(int64_t head, const int64_t* places) const {
    return {static_cast<const T*>(data) + head * size, size, places};
  }
};

// Where the positions of a run lie on one side, in numbers from its beginning.
struct Places {
  int64_t numbers[RUN], scales[RUN];

  // Positions from .. to, whose slots follow one another in a page.
  void put(const Side& side, Slot first, int64_t from, int64_t to) {
    int64_t at = side.at(first);
    for (int64_t p = from; p < to; p++, at += side.heads * side.size) numbers[p] = at;
    if (side.scale == nullptr) return;
    at = side.scales_at(first);
    for (int64_t p = from; p < to; p++, at += side.heads) scales[p] = at;
  }

  void repeat(const Side& side, int64_t position, int64_t from, int64_t to) {
    std::fill(numbers + from, numbers + to, numbers[position]);
    if (side.scale != nullptr) std::fill(scales + from, scales + to, scales[position]);
  }
};
