// Labels whose addresses are taken, in a table.
// old: ab
// new: ac
// switched: value
#include "program.h"

APART void value(char *out, const char *code) {
    static const void *const table[] = {&&first, &&second, &&end};
    goto *table[*code++ - '0'];
first: *out++ = 'a'; goto *table[*code++ - '0'];
#ifdef FIXED
second: *out++ = 'c'; goto *table[*code++ - '0'];
#else
second: *out++ = 'b'; goto *table[*code++ - '0'];
#endif
end: *out = 0;
}
void answer(char *out, size_t size) { (void)size; value(out, "012"); }
