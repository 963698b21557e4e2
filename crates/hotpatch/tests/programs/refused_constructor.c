// A function that runs before main.
// old: 1
// refused: constructor
#include "program.h"

static int state = 1;
#ifdef FIXED
__attribute__((constructor)) static void begin(void) { state = 2; }
#endif
void answer(char *out, size_t size) { snprintf(out, size, "%d", state); }
