// A field more in a class that exists.
// build: g++ -O2 $FLAGS -o program cpp_refused_layout.cpp
// old: 3
// refused: layout struct Pair: its field b was at offset 4 and is at 8
// allowed:
#include "program.h"

class Pair {
  public:
    int a = 0;
#ifdef FIXED
    int between = 0;
#endif
    int b = 3;
    APART int value() const { return b; }
};
static Pair *one;
void answer(char *out, size_t size) {
    if (!one) one = new Pair;
    snprintf(out, size, "%d", one->value());
}
