// A function that is chosen when the program starts.
// old: 1
// refused: ifunc
#include "program.h"

static int first(void) { return 1; }
static int second(void) { return 2; }
#ifdef FIXED
static void *choose(void) { return getenv("X_NEVER_SET") ? (void *)first : (void *)second; }
int value(void) __attribute__((ifunc("choose")));
APART int use(void) { return value() + 0; }
#else
static void *choose(void) { return (void *)first; }
int value(void) __attribute__((ifunc("choose")));
APART int use(void) { return value(); }
#endif
int (*volatile keep[])(void) = {first, second};
void answer(char *out, size_t size) { snprintf(out, size, "%d", use()); }
