// A changed inline function is a change of all its callers.
// old: 2 3
// new: 12 13
// switched: one,two
#include "program.h"

#ifdef FIXED
static inline int base(int x) { return x + 11; }
#else
static inline int base(int x) { return x + 1; }
#endif
APART int one(int x) { return base(x); }
APART int two(int x) { return base(x) + 1; }
void answer(char *out, size_t size) { snprintf(out, size, "%d %d", one(1), two(1)); }
