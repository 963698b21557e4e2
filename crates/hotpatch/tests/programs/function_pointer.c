// Called by a pointer that was taken before the patch, and by one that the new code takes: they stay equal.
// old: 1 1
// new: 2 1
// switched: value,taken
#include "program.h"

#ifdef FIXED
APART int value(void) { return 2; }
APART int (*taken(int x))(void) { return x > 5 ? value : NULL; }
#else
APART int value(void) { return 1; }
APART int (*taken(int x))(void) { return x > 4 ? value : NULL; }
#endif
int (*volatile pointer)(void) = value;
void answer(char *out, size_t size) { snprintf(out, size, "%d %d", pointer(), taken(6) == pointer); }
