// A new thread-local variable.
// old: 1
// refused: thread-local fresh
#include "program.h"

#ifdef FIXED
static __thread int fresh = 1;
APART int value(void) { return ++fresh; }
#else
APART int value(void) { return 1; }
#endif
void answer(char *out, size_t size) { snprintf(out, size, "%d", value()); }
