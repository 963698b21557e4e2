// An exception goes through a frame of the new function: its object is destroyed, and who catches it is the program's.
// build: g++ -O2 $FLAGS -o program cpp_exception.cpp
// old: 5 0 -
// new: -1 1 three
// old: 5 1 -
// new: -1 2 three
// switched: _Z6middlei
#include "program.h"
#include <stdexcept>

static int destroyed;
struct Guard { int armed; APART ~Guard() { destroyed += armed; } };
APART void check(int x) { if (x > 2) throw std::runtime_error("three"); }
#ifdef FIXED
APART int middle(int x) { Guard guard{1}; check(x + 1); return 5; }
#else
APART int middle(int x) { Guard guard{0}; check(x); return 5; }
#endif
void answer(char *out, size_t size) {
    try {
        int got = middle(2);
        snprintf(out, size, "%d %d -", got, destroyed);
    } catch (const std::exception &error) {
        snprintf(out, size, "-1 %d %s", destroyed, error.what());
    }
}
