// Two files have a static function and a static variable of one name: each refers to its own.
// build: gcc -O2 $FLAGS -o program same_name.c same_name_other.c
// old: 1 100 8 800
// new: 2 100 9 800
// switched: value,value
#include "program.h"

int other(void);
int other_state(void);
static volatile int state = 100;
#ifdef FIXED
static APART int value(void) { return state / 100 + 1; }
#else
static APART int value(void) { return state / 100; }
#endif
void answer(char *out, size_t size) { snprintf(out, size, "%d %d %d %d", value(), state, other(), other_state()); }
