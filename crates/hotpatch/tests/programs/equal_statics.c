// Two files have a static function of one name and the same bytes; one changes.
// build: gcc -O2 $FLAGS -o program equal_statics.c same_name_equal.c
// old: 100 800
// new: 101 800
// switched: value
#include "program.h"

int other(void);
static volatile int state = 100;
#ifdef FIXED
static APART int value(void) { return state + 1; }
#else
static APART int value(void) { return state; }
#endif
void answer(char *out, size_t size) { snprintf(out, size, "%d %d", value(), other()); }
