// A function that is called differently, and whose address is in a table.
// old: 1
// refused: signature value
#include "program.h"

#ifdef FIXED
APART int value(long a, double b) { return (int)(a + b); }
void *table[] = {(void *)value};
void answer(char *out, size_t size) { snprintf(out, size, "%d", value(1, 1.0)); }
#else
APART int value(long a) { return (int)a; }
void *table[] = {(void *)value};
void answer(char *out, size_t size) { snprintf(out, size, "%d", value(1)); }
#endif
