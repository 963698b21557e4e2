// object: `sleep`, `usleep`, `clock_nanosleep` for a time
// status: captured
// note: goes on with the exact rest, also after a failover; by a clock of processor time it begins anew at a failover
#include "calls/wait.h"

static void wait_once(void) {
    struct timespec limit = limit_left();
    CHECK_EQUAL(clock_nanosleep(CLOCK_BOOTTIME, 0, &limit, 0), 0);
}

WAIT_MAIN
