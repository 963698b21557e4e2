// Two versions that keep a field beside an object: each goes on with what the other kept.
#include "program.h"
#ifndef VERSION
#define VERSION 1
#endif

static int object;
#if VERSION == 1
APART long value(void) { return object; }
#else
#include <outlive_shadow.h>
APART long value(void) {
    long *count = (long *)outlive_shadow_make(&object, 1, sizeof *count);
    return VERSION * 100 + ++*count;
}
#endif
void answer(char *out, size_t size) { snprintf(out, size, "%ld", value()); }
