// A function that the compiler specialises for how it is called: who calls it goes with it.
// old: 15
// new: 25
// switched: caller
#include "program.h"

#ifdef FIXED
#define MORE 20
#else
#define MORE 10
#endif
static APART int helper(volatile int *x, int scale, int never) {
    int sum = 0;
    for (int i = 0; i < scale; i++) sum += *x;
    if (never) return sum * 3;
    return sum + MORE;
}
static volatile int five = 5;
APART int caller(void) { return helper(&five, 1, 0); }
void answer(char *out, size_t size) { snprintf(out, size, "%d", caller()); }
