// A lambda that data holds, as a std::function made before.
// build: g++ -O2 $FLAGS -o program cpp_lambda.cpp
// old: 15
// new: 50
// switched: _Z5applyii
#include "program.h"
#include <functional>

APART int apply(int a, int b) {
#ifdef FIXED
    return a * b;
#else
    return a + b;
#endif
}
static std::function<int(int)> held;
void answer(char *out, size_t size) {
    if (!held) { int five = 5; held = [five](int x) { return apply(five, x); }; }
    snprintf(out, size, "%d", held(10));
}
