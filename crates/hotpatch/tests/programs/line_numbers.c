// Functions that pass the line they are on to whatever they like are not changed where only lines move; one whose number is
// another, by as much as the lines moved, is.
// old: 0 5
// new: 1 8
// switched: limit,reports
#include "program.h"

static volatile int seen;
APART int report(int line) { seen = line; return line > 0; }
#ifdef FIXED
// Three lines more.
#define FIRST 103
#define LIMIT 8
#else
#define FIRST 100
#define LIMIT 5
#endif
#line FIRST
APART int moved(int x) { return x > 1000 ? report(__LINE__) : x + 1; }
APART void stored(int x) {
    if (x > 1000)
        seen = __LINE__;
}
APART int limit(void) { return seen + LIMIT; }
#ifdef FIXED
APART int reports(int x) { return x < 100; }
#else
APART int reports(int x) { return x > 1000 ? report(__LINE__) : 0; }
#endif
void answer(char *out, size_t size) {
    stored(moved(1));
    snprintf(out, size, "%d %d", reports(moved(2)), limit());
}
