// Code that the change brings along: what it finds wrong is put right before the new function runs, and undone with it.
// old: 5 in 0
// new: 50 in 12
// old: 5 in 123
// new: 50 in 12312
// old: 5 in 12312
// switched: value
#include "program.h"

static int unit = 1, calls;
#ifdef FIXED
APART int value(void) { return 5 * unit; }
void outlive_patch_before(void) { unit = 10; calls = calls * 10 + 1; }
void outlive_patch_after(void) { calls = calls * 10 + 2; }
void outlive_patch_revert(void) { unit = 1; calls = calls > 100 ? calls : calls * 10 + 3; }
#else
APART int value(void) { return 5 + unit - unit; }
#endif
void answer(char *out, size_t size) { int got = value(); snprintf(out, size, "%d in %d", got, calls); }
