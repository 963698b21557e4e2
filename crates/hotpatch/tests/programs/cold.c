// Code that the compiler puts away as unlikely jumps back into its function.
// old: 1 error 7 8
// new: 2 error 7 9
// switched: value
#include "program.h"

APART __attribute__((cold)) int report(char *out, int x) { return sprintf(out, "error %d ", x); }
#ifdef FIXED
#define LESS 1
#else
#define LESS 2
#endif
APART char *value(char *out, int x) {
    if (__builtin_expect(x > 5, 0)) { out += report(out, x); x += 3; }
    return out + sprintf(out, "%d ", x > 9 ? x - LESS : x - LESS + 2);
}
void answer(char *out, size_t size) { (void)size; char *end = value(value(out, 1), 7); end[-1] = 0; }
