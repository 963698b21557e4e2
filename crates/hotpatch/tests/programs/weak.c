// A weak function.
// old: 1
// new: 2
// switched: value
#include "program.h"

#ifdef FIXED
__attribute__((weak)) APART int value(void) { return 2; }
#else
__attribute__((weak)) APART int value(void) { return 1; }
#endif
void answer(char *out, size_t size) { snprintf(out, size, "%d", value()); }
