// object: `nanosleep`
// status: captured
// note: goes on with the exact rest, also after a failover
#include "calls/wait.h"
#include <sys/syscall.h>

static void wait_once(void) {
    struct timespec limit = limit_left();
    CHECK_EQUAL(syscall(SYS_nanosleep, &limit, 0), 0);
}

WAIT_MAIN
