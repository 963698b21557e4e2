// setjmp in the program, longjmp from the new code.
// old: 1
// new: 2
// switched: value
#include "program.h"

#include <setjmp.h>
static jmp_buf back;
#ifdef FIXED
APART void value(void) { longjmp(back, 2); }
#else
APART void value(void) { longjmp(back, 1); }
#endif
void answer(char *out, size_t size) {
    int code = setjmp(back);
    if (!code) value();
    snprintf(out, size, "%d", code);
}
