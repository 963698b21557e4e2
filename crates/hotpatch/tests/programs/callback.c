// A function that a library calls back.
// old: 1 2 3
// new: 3 2 1
// switched: compare
#include "program.h"

#ifdef FIXED
static int compare(const void *a, const void *b) { return *(const int *)b - *(const int *)a; }
#else
static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
#endif
void answer(char *out, size_t size) {
    int v[] = {2, 3, 1};
    qsort(v, 3, sizeof *v, compare);
    snprintf(out, size, "%d %d %d", v[0], v[1], v[2]);
}
