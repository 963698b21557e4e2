// A function that calls itself.
// old: 120
// new: 240
// switched: value
#include "program.h"

#ifdef FIXED
APART int value(int n) { return n <= 1 ? 2 : n * value(n - 1); }
#else
APART int value(int n) { return n <= 1 ? 1 : n * value(n - 1); }
#endif
void answer(char *out, size_t size) { snprintf(out, size, "%d", value(5)); }
