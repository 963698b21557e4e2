// A function with two names.
// old: 1 1
// new: 2 2
// switched: value
#include "program.h"

#ifdef FIXED
APART int value(void) { return 2; }
#else
APART int value(void) { return 1; }
#endif
int second(void) __attribute__((alias("value")));
int (*volatile pointer)(void) = second;
void answer(char *out, size_t size) { snprintf(out, size, "%d %d", value(), pointer()); }
