// Initialised data that changed.
// old: 5
// refused: data limit
#include "program.h"

#ifdef FIXED
int limit = 6;
APART int value(void) { return limit + 0 * limit; }
#else
int limit = 5;
APART int value(void) { return limit; }
#endif
void answer(char *out, size_t size) { snprintf(out, size, "%d", value()); }
