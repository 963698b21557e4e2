// A thread-local variable that exists already.
// old: 4
// new: 14
// switched: value
#include "program.h"

static __thread int mine = 3;
#ifdef FIXED
APART int value(void) { return mine + 11; }
#else
APART int value(void) { return mine + 1; }
#endif
void answer(char *out, size_t size) { mine = 3; snprintf(out, size, "%d", value()); }
