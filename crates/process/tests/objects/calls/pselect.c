// object: `pselect` with a limit and a mask
// status: captured
// note: goes on with the exact rest, also after a failover; the kernel keeps it in the program's memory
#include "calls/wait.h"
#include <sys/select.h>

static void wait_once(void) {
    int ends[2];
    CHECK(!pipe(ends));
    fd_set set;
    FD_ZERO(&set);
    FD_SET(ends[0], &set);
    struct timespec limit = limit_left();
    sigset_t mask;
    sigfillset(&mask);
    CHECK_EQUAL(pselect(ends[0] + 1, &set, 0, 0, &limit, &mask), 0);
}

WAIT_MAIN
