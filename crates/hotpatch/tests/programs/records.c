// Arguments and results in memory, more of them than registers.
// old: 36 1 8
// new: 72 1 8
// switched: value
#include "program.h"

struct record { long a, b, c; };
#ifdef FIXED
#define TIMES 2
#else
#define TIMES 1
#endif
APART struct record value(long a, long b, long c, long d, long e, long f, long g, long h) {
    struct record r = {(a + b + c + d + e + f + g + h) * TIMES, a, h};
    return r;
}
void answer(char *out, size_t size) {
    struct record r = value(1, 2, 3, 4, 5, 6, 7, 8);
    snprintf(out, size, "%ld %ld %ld", r.a, r.b, r.c);
}
