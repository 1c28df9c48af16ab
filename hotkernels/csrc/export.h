// What Python calls has C names; everything else stays inside the library.
#pragma once

#define EXPORT extern "C" __attribute__((visibility("default")))
