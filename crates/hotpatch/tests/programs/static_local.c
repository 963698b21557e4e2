// A static variable of a function goes on: old and new count together.
// old: 1 10
// new: 102 20
// old: 3 30
// new: 104 40
// old: 5 50
// switched: value
#include "program.h"

APART int ten(void) { static int count; return count += 10; }
#ifdef FIXED
APART int value(void) { static int count; return 100 + ++count; }
#else
APART int value(void) { static int count; return ++count; }
#endif
void answer(char *out, size_t size) { snprintf(out, size, "%d %d", value(), ten()); }
