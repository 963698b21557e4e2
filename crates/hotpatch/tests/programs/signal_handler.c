// A function that is called from a signal handler, and the handler itself.
// old: 1
// new: 2
// switched: handle
#include "program.h"

#include <signal.h>
static volatile int seen;
#ifdef FIXED
static void handle(int number) { (void)number; seen = 2; }
#else
static void handle(int number) { (void)number; seen = 1; }
#endif
void answer(char *out, size_t size) {
    static int is_set;
    if (!is_set++) signal(SIGUSR1, handle);
    seen = 0;
    raise(SIGUSR1);
    snprintf(out, size, "%d", seen);
}
