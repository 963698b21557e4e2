// object: `ppoll`, `pselect6`, `select` with a limit in memory that cannot be written
// status: captured
// note: goes on with what is left, counted from the first stop that found it waiting: late by up to the length of an epoch, never early
#include "calls/wait.h"
#include <poll.h>
#include <sys/syscall.h>

static void wait_once(void) {
    int ends[2];
    CHECK(!pipe(ends));
    struct pollfd entry = {ends[0], POLLIN, 0x7f};
    static const struct timespec limit = {1, 500000000};
    CHECK_EQUAL(syscall(SYS_ppoll, &entry, 1, &limit, 0, 8), 0);
    CHECK_EQUAL(entry.revents, 0);
}

WAIT_MAIN
