// object: `sigtimedwait` with a limit
// status: captured
// note: goes on with what is left, counted from the first stop that found it waiting: late by up to the length of an epoch, never early
#include "calls/wait.h"

static void wait_once(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 3);
    struct timespec limit = limit_left();
    CHECK_EQUAL(sigtimedwait(&set, 0, &limit), -1);
    CHECK_EQUAL(errno, EAGAIN);
}

WAIT_MAIN
