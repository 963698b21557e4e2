// A string that changed, one that did not, one that both share the end of.
// old: old text, same, ext
// new: new text, same, ext
// switched: value
#include "program.h"

#ifdef FIXED
APART const char *value(void) { return "new text"; }
#else
APART const char *value(void) { return "old text"; }
#endif
APART const char *same(void) { return "same"; }
APART const char *end(void) { return "ext"; }
void answer(char *out, size_t size) { snprintf(out, size, "%s, %s, %s", value(), same(), end()); }
