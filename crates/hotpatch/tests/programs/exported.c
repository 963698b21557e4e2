// An exported function.
// old: 1
// new: 2
// switched: value
#include "program.h"

#ifdef FIXED
APART int value(void) { return 2; }
#else
APART int value(void) { return 1; }
#endif
void answer(char *out, size_t size) { snprintf(out, size, "%d", value()); }
