// A program and its library, both changed: one patch of two parts.
// build: gcc -O2 -shared -fPIC $FLAGS -o libvalue.so parts_side.c && gcc -O2 $FLAGS -o program parts.c -L. -lvalue -Wl,-rpath,$PWD
// old: 11 1
// new: 12 3
// switched: own,value
#include "program.h"

int value(void);
#ifdef FIXED
APART int own(void) { return 12; }
#else
APART int own(void) { return 11; }
#endif
void answer(char *out, size_t size) {
    int mine = own();
    snprintf(out, size, "%d %d", mine, value());
}
