// A field more in the middle of a structure that exists.
// old: 3
// refused: layout struct pair: its field b was at offset 4 and is at 8
// allowed:
#include "program.h"

struct pair {
    int a;
#ifdef FIXED
    int between;
#endif
    int b;
};
static struct pair *one;
APART int value(struct pair *p) { return p->b; }
void answer(char *out, size_t size) {
    if (!one) { one = calloc(1, sizeof *one + 64); one->b = 3; }
    snprintf(out, size, "%d", value(one));
}
