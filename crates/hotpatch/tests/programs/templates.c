// Local arrays of strings, which the compiler copies from data without a name, all in one place: whoever uses it goes along.
// old: 5 abc
// new: 6 abc
// switched: kept,value
#include "program.h"

#define MORE "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18", "19", "20"

static volatile int two = 2, zero;

APART const char *pick(const char **names) { return names[two + zero]; }
APART void kept(char *out, size_t size) {
    const char *names[] = {"zero", "one", "abc", "three", "four", "five", "six", "seven", "eight", "nine", "ten", MORE, MORE};
    snprintf(out, size, " %s", pick(names));
}
#ifdef FIXED
APART int value(void) {
    const char *names[] = {"a", "ab", "abcdef", "abcd", "x", "y", "z", "u", "v", "w", "another", "more", MORE, MORE};
    return (int)strlen(pick(names)) + zero;
}
#else
APART int value(void) {
    const char *names[] = {"a", "ab", "abcde", "abcd", "x", "y", "z", "u", "v", "w", "another", MORE, MORE};
    return (int)strlen(pick(names)) + zero;
}
#endif
void answer(char *out, size_t size) {
    int used = snprintf(out, size, "%d", value());
    kept(out + used, size - (size_t)used);
}
