// Three versions, for patches over patches.
#include "program.h"
#ifndef VERSION
#define VERSION 1
#endif
#if VERSION == 1
APART int first(void) { return 1; }
APART int second(void) { return 1; }
#elif VERSION == 2
APART int first(void) { return 2; }
APART int second(void) { return 2; }
#else
APART int first(void) { return 3; }
APART int second(void) { return 1; }
#endif
void answer(char *out, size_t size) { snprintf(out, size, "%d %d", first(), second()); }
