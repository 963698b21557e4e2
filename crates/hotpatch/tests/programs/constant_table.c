// A constant table that changed, and its readers.
// old: 1 2 3
// new: 1 9 3
// switched: value
#include "program.h"

#ifdef FIXED
const int table[] = {1, 9, 3};
#else
const int table[] = {1, 2, 3};
#endif
static volatile int zero;
APART int value(int i) { return table[i + zero]; }
void answer(char *out, size_t size) { snprintf(out, size, "%d %d %d", value(0), value(1), value(2)); }
