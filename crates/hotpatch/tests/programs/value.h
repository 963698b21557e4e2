// A function with strings, numbers and a constant of its own, for programs that differ only in how they are built.
#pragma once
#include "program.h"

static volatile int numbers[4] = {1, 2, 3, 4};
static volatile double half = 0.5;
#ifdef FIXED
static APART void value(char *out, size_t size) {
    int sum = 0;
    for (int i = 0; i < 2; i++) sum += numbers[i] * 2 + 1;
    snprintf(out, size, "%s %d %.2f", strchr("a two", 't'), sum, half * 14.5);
}
#else
static APART void value(char *out, size_t size) { snprintf(out, size, "%s %d %.2f", "one", numbers[0], half * 7.0); }
#endif
void answer(char *out, size_t size) { value(out, size); }
