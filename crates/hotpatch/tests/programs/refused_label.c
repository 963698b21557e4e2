// A label of inline assembly in the function.
// old: 1
// refused: assembly-label inside_value
#include "program.h"

#ifdef FIXED
APART int value(void) { __asm__ volatile("inside_value: nop"); return 2; }
#else
APART int value(void) { __asm__ volatile("inside_value: nop"); return 1; }
#endif
void answer(char *out, size_t size) { snprintf(out, size, "%d", value()); }
