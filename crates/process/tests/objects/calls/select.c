// object: `select` with a limit
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
    struct timeval limit = {1, 500000};
    CHECK_EQUAL(select(ends[0] + 1, &set, 0, 0, &limit), 0);
    CHECK(!FD_ISSET(ends[0], &set));
}

WAIT_MAIN
