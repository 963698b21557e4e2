// object: `epoll_pwait2` with a limit
// status: captured
// note: goes on with what is left, counted from the first stop that found it waiting: late by up to the length of an epoch, never early
#include "calls/wait.h"
#include <sys/epoll.h>
#include <sys/syscall.h>

static void wait_once(void) {
    int set = epoll_create1(0);
    struct epoll_event event;
    struct timespec limit = limit_left();
    CHECK_EQUAL(syscall(SYS_epoll_pwait2, set, &event, 1, &limit, 0, 0), 0);
}

WAIT_MAIN
