// A function that has no room at its entry.
// old: 1
// refused: entry value
#include "program.h"

#ifdef FIXED
__attribute__((patchable_function_entry(0))) APART int value(void) { return 2; }
#else
__attribute__((patchable_function_entry(0))) APART int value(void) { return 1; }
#endif
void answer(char *out, size_t size) { snprintf(out, size, "%d", value()); }
