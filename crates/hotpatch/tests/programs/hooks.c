// Code that the change brings along: what it finds wrong is put right before the new function runs, and undone with it. Each hook
// makes a system call of its own before it does the rest.
// old: 5 in 0, 0 written
// new: 50 in 12, 2 written
// old: 5 in 123, 3 written
// new: 50 in 12312, 5 written
// old: 5 in 12312, 6 written
// switched: value
#include "program.h"
#include <sys/ioctl.h>
#include <unistd.h>

static int unit = 1, calls, ends[2];
#ifdef FIXED
APART int value(void) { return 5 * unit; }
static void tell(void) { if (write(ends[1], "x", 1) != 1) abort(); }
void outlive_patch_before(void) { tell(); unit = 10; calls = calls * 10 + 1; }
void outlive_patch_after(void) { tell(); calls = calls * 10 + 2; }
void outlive_patch_revert(void) { tell(); unit = 1; calls = calls > 100 ? calls : calls * 10 + 3; }
#else
APART int value(void) { return 5 + unit - unit; }
#endif
void answer(char *out, size_t size) {
    int got = value(), written = 0;
    if (!ends[1] && pipe(ends)) abort();
    ioctl(ends[0], FIONREAD, &written);
    snprintf(out, size, "%d in %d, %d written", got, calls, written);
}
