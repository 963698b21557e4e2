// object: `epoll_wait`, `epoll_pwait` with a limit
// status: captured
// note: goes on with what is left, counted from the first stop that found it waiting: late by up to the length of an epoch, never early
#include "calls/wait.h"
#include <sys/epoll.h>

static void wait_once(void) {
    int set = epoll_create1(0);
    struct epoll_event event;
    CHECK_EQUAL(epoll_wait(set, &event, 1, 1500), 0);
}

WAIT_MAIN
