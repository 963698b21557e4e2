// A constant that changes as a line's number does, and to the number of another line of the same function, is a change all the same.
// old: 255 255 0 0
// new: 256 256 0 0
// switched: bounded,passed
// warned: of: handed_on, stored
#include "program.h"

static volatile int seen;
APART int report(int number) { seen = number; return number; }
#ifdef FIXED
#define LIMIT 256
#define FIRST 242
#define SECOND 251
#else
#define LIMIT 255
#define FIRST 241
#define SECOND 250
#endif
#line FIRST
APART int bounded(int n) {
    if (n == 1)
        seen = 1;
    if (n == 2)
        seen = 2;
    if (n > LIMIT - 1)
        return LIMIT;
    if (n == 3)
        seen = 3;
    if (n == 4)
        seen = 4;
    if (n == 5)
        seen = 5;
    if (n == 6)
        seen = 6;
    if (n == 7)
        seen = 7;
    return n;
}
#line SECOND
APART int passed(int n) {
    if (n > 5)
        n = report(LIMIT) + 1 - 1;
    seen = 3;
    seen = 4;
    seen = 5;
    return n;
}
APART int handed_on(int n) {
    if (n > 1000)
        return report(__LINE__) + 1;
    return 0;
}
APART int stored(int n) {
    if (n > 1000)
        seen = __LINE__;
    return 0;
}
void answer(char *out, size_t size) {
    snprintf(out, size, "%d %d %d %d", bounded(300), passed(6), handed_on(1), stored(1));
}
