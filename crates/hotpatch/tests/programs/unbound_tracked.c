// The new code calls a function that libc chooses when it starts, and that the program could call but has not called yet, by a linkage table of two sections.
// build: gcc -O2 -fno-builtin -fcf-protection -Wl,-z,lazy -Wl,-z,ibtplt $FLAGS -o program unbound_tracked.c
// old: 1
// new: 1 xyz
// new: 1 xyz
// switched: value
#include "program.h"

#include <wchar.h>

static volatile int never;
#ifdef FIXED
APART void value(char *out, size_t size) {
    wchar_t text[4];
    wmemset(text, L'?', 4);
    for (int i = 0; i < 3; i++)
        text[i] = L'x' + i;
    text[3] = 0;
    snprintf(out, size, "%d %c%c%c", (int)(wcsnlen(text, 4) == 3), (int)text[0], (int)text[1], (int)text[2]);
}
#else
APART void value(char *out, size_t size) { snprintf(out, size, "%d", 1); }
#endif
void answer(char *out, size_t size) {
    if (never) {
        wchar_t text[4];
        wmemset(text, 0, 4);
        never = (int)wcsnlen(text, 4);
    }
    value(out, size);
}
