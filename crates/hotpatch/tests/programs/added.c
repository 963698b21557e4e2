// New functions, new variables, new strings.
// old: 1
// new: new 1 5
// new: new 2 5
// old: 1
// switched: value
#include "program.h"

#ifdef FIXED
static int calls;
static int initialised = 5;
static APART const char *word(void) { return "new"; }
APART int helper(void) { return ++calls; }
APART void value(char *out, size_t size) { int n = helper(); snprintf(out, size, "%s %d %d", word(), n, initialised); }
#else
APART void value(char *out, size_t size) { snprintf(out, size, "%d", 1); }
#endif
void answer(char *out, size_t size) { value(out, size); }
