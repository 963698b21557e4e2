// A function of a shared library, and what it calls there.
// build: gcc -O2 -shared -fPIC $FLAGS -o libvalue.so library_side.c && gcc -O2 $FLAGS -o program library.c -L. -lvalue -Wl,-rpath,$PWD
// old: 1 7
// new: 3 7
// switched: value,hidden
#include "program.h"

int value(void);
int kept(void);
void answer(char *out, size_t size) { snprintf(out, size, "%d %d", value(), kept()); }
