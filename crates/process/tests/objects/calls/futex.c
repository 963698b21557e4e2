// object: `futex` (FUTEX_WAIT) with a limit
// status: captured
// note: goes on with the exact rest, also after a failover
#include "calls/wait.h"
#include <linux/futex.h>
#include <sys/syscall.h>

static void wait_once(void) {
    struct timespec limit = limit_left();
    static int word = 7;
    CHECK_EQUAL(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 7, &limit, 0, 0), -1);
    CHECK_EQUAL(errno, ETIMEDOUT);
}

WAIT_MAIN
