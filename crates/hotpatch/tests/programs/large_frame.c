// A frame of many pages, and one whose size is known only when it runs.
// old: 4097
// new: 8194
// switched: value
#include "program.h"

#include <alloca.h>
#ifdef FIXED
#define TIMES 2
#else
#define TIMES 1
#endif
APART int value(int n) {
    char big[20000];
    memset(big, 1, sizeof big);
    char *more = alloca(n);
    memset(more, 1, n);
    int sum = 0;
    for (int i = 0; i < n; i++) sum += more[i];
    return (sum + big[n]) * TIMES;
}
void answer(char *out, size_t size) { snprintf(out, size, "%d", value(4096)); }
