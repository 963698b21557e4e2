// backtrace() through the new function reaches main.
// build: gcc -O2 -rdynamic $FLAGS -o program backtraces.c
// old: old whole
// new: new whole
// switched: value
#include "program.h"

#include <execinfo.h>
APART int whole(void) {
    void *frames[16];
    int count = backtrace(frames, 16);
    char **names = backtrace_symbols(frames, count);
    int found = 0;
    for (int i = 0; names && i < count; i++) found |= strstr(names[i], "(main+") != NULL;
    free(names);
    return found;
}
#ifdef FIXED
APART void value(char *out, size_t size) { volatile char pad[100]; pad[5] = 1; snprintf(out, size, "new %s", whole() ? "whole" : "cut"); pad[6] = 2; }
#else
APART void value(char *out, size_t size) { snprintf(out, size, "old %s", whole() ? "whole" : "cut"); }
#endif
void answer(char *out, size_t size) { value(out, size); out[size - 1] = 0; }
