// The new function catches what a function of the program throws, by its type, and another goes on through it.
// build: g++ -O2 $FLAGS -o program cpp_catch.cpp
// old: outside 7
// new: inside 7
// switched: _Z8catchingPcm
#include "program.h"
#include <string>

struct Odd { int value; };
APART void thrower(int x) { if (x & 1) throw Odd{x}; else throw std::string("even"); }
APART void catching(char *out, size_t size) {
#ifdef FIXED
    try {
        thrower(7);
    } catch (const std::string &) {
        snprintf(out, size, "the wrong one");
    } catch (const Odd &odd) {
        snprintf(out, size, "inside %d", odd.value);
    }
#else
    thrower(7);
    snprintf(out, size, "none");
#endif
}
void answer(char *out, size_t size) {
    try { catching(out, size); } catch (const Odd &odd) { snprintf(out, size, "outside %d", odd.value); }
}
