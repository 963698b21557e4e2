// A static function.
// old: 11
// new: 12
// switched: value
#include "program.h"

static volatile int ten = 10;
#ifdef FIXED
static APART int value(void) { return ten + 2; }
#else
static APART int value(void) { return ten + 1; }
#endif
void answer(char *out, size_t size) { snprintf(out, size, "%d", value()); }
