// A function with any number of arguments, integers and floats: the number of vector registers is passed in al.
// old: 6 1.5
// new: 12 3.0
// switched: value
#include "program.h"

#ifdef FIXED
#define TIMES 2
#else
#define TIMES 1
#endif
APART void value(char *out, size_t size, int n, ...) {
    va_list list;
    va_start(list, n);
    int sum = 0;
    for (int i = 0; i < n; i++) sum += va_arg(list, int);
    double rest = va_arg(list, double);
    va_end(list);
    snprintf(out, size, "%d %.1f", sum * TIMES, rest * TIMES);
}
void answer(char *out, size_t size) { value(out, size, 3, 1, 2, 3, 1.5); }
