// object: `poll` with a limit
// status: captured
// note: goes on with the exact rest, also after a failover
#include "calls/wait.h"
#include <poll.h>

static void wait_once(void) {
    int ends[2];
    CHECK(!pipe(ends));
    struct pollfd entry = {ends[0], POLLIN, 0x7f};
    CHECK_EQUAL(poll(&entry, 1, 1500), 0);
    CHECK_EQUAL(entry.revents, 0);
}

WAIT_MAIN
