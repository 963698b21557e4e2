// Only line numbers of assertions move: no change.
// old: 5
// nothing:
#include "program.h"

#include <assert.h>
#ifdef FIXED
// A line more.
#define FIRST 101
#else
#define FIRST 100
#endif
#line FIRST
APART int value(int x) { assert(x < 100); return x + 1; }
void answer(char *out, size_t size) { snprintf(out, size, "%d", value(4)); }
