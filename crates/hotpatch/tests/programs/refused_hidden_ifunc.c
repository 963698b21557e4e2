// A library's function that is chosen when it is loaded, hidden, and of an object that was not compiled here.
// build: /usr/bin/gcc -O2 -fPIC -c -o chosen.o refused_hidden_ifunc_chosen.c && gcc -O2 -shared -fPIC $FLAGS -o libvalue.so refused_hidden_ifunc_side.c chosen.o && gcc -O2 $FLAGS -o program refused_hidden_ifunc.c -L. -lvalue -Wl,-rpath,$PWD
// old: 7
// refused: ifunc
#include "program.h"

int value(void);
void answer(char *out, size_t size) { snprintf(out, size, "%d", value()); }
