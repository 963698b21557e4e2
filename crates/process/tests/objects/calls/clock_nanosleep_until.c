// object: `clock_nanosleep` until a time (TIMER_ABSTIME)
// status: captured
// note: exact, by the workload's clocks
#include "calls/wait.h"

static void wait_once(void) {
    struct timespec end, limit = limit_left();
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += limit.tv_sec, end.tv_nsec += limit.tv_nsec;
    if (end.tv_nsec >= 1000000000) end.tv_sec++, end.tv_nsec -= 1000000000;
    CHECK_EQUAL(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, 0), 0);
}

WAIT_MAIN
