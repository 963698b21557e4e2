// A structure that only grew where it is new: no type that exists moved.
// old: 1
// new: 2
// switched: value
#include "program.h"

#ifdef FIXED
struct fresh { int a, b; };
APART int value(void) { volatile struct fresh f = {1, 1}; return f.a + f.b; }
#else
APART int value(void) { return 1; }
#endif
void answer(char *out, size_t size) { snprintf(out, size, "%d", value()); }
