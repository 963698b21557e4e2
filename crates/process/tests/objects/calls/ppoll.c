// object: `ppoll` with a limit
// status: captured
// note: goes on with the exact rest, also after a failover; the kernel keeps it in the program's memory
#include "calls/wait.h"
#include <poll.h>

static void wait_once(void) {
    int ends[2];
    CHECK(!pipe(ends));
    struct pollfd entry = {ends[0], POLLIN, 0x7f};
    struct timespec limit = limit_left();
    CHECK_EQUAL(ppoll(&entry, 1, &limit, 0), 0);
    CHECK_EQUAL(entry.revents, 0);
}

WAIT_MAIN
