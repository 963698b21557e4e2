// Functions and strings change their places in the file: no change.
// old: one two
// nothing:
#include "program.h"

#ifdef FIXED
APART const char *two(void) { return "two"; }
APART const char *one(void) { return "one"; }
#else
APART const char *one(void) { return "one"; }
APART const char *two(void) { return "two"; }
#endif
void answer(char *out, size_t size) { snprintf(out, size, "%s %s", one(), two()); }
