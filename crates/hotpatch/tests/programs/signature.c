// A function that is called differently, by callers that all go with it.
// old: 1
// new: 3
// switched: answer
#include "program.h"

#ifdef FIXED
APART int value(long a, double b) { return (int)(a + b); }
void answer(char *out, size_t size) { snprintf(out, size, "%d", value(1, 2.0)); }
#else
APART int value(long a) { return (int)a; }
void answer(char *out, size_t size) { snprintf(out, size, "%d", value(1)); }
#endif
