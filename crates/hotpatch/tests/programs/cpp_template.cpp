// Instances of a template, which every object may have one of and the linker keeps one.
// build: g++ -O2 $FLAGS -o program cpp_template.cpp
// old: 9 7
// new: 8 6
// switched: _Z5twiceIiET_S0_,_Z5twiceIlET_S0_
#include "program.h"

template <class T> APART T twice(T x) {
#ifdef FIXED
    return x + x;
#else
    return x + x + 1;
#endif
}
void answer(char *out, size_t size) { snprintf(out, size, "%d %ld", twice(4), twice(3L)); }
