// A switch that is compiled to a jump table.
// old: 3 9 f4 8 5 1 -1
// new: 3 9 f7 8 5 1 -1
// switched: value
#include "program.h"

static APART int f(int x) { __asm__ volatile(""); return x; }
#ifdef FIXED
#define THIRD 7
#else
#define THIRD 4
#endif
APART int value(char *out, int x) {
    switch (x) {
    case 0: return sprintf(out, "%d ", f(3));
    case 1: return sprintf(out, "%d ", 9);
    case 2: return sprintf(out, "f%d ", f(THIRD));
    case 3: return sprintf(out, "%d ", f(8));
    case 4: return sprintf(out, "%d ", f(4) + 1);
    case 5: return sprintf(out, "%x ", f(1));
    default: return sprintf(out, "%d", -1);
    }
}
void answer(char *out, size_t size) { (void)size; for (int i = 0; i < 7; i++) out += value(out, i); }
