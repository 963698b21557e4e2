// The new code calls functions of libraries that the program never called.
// old: 1
// new: 3 1
// switched: value
#include "program.h"

#include <unistd.h>
#ifdef FIXED
APART void value(char *out, size_t size) { snprintf(out, size, "%d %d", (int)labs(-3 * (getppid() > 0)), getpgrp() > 0); }
#else
APART void value(char *out, size_t size) { snprintf(out, size, "%d", 1); }
#endif
void answer(char *out, size_t size) { value(out, size); }
