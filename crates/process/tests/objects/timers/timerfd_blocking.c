// object: timerfd, a thread waiting for it
// status: captured
#include "timers/timer.h"
#include <sys/timerfd.h>

int main(void) {
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec spec = {{0, 0}, {1, 200000000}};
    double from = now();
    CHECK(!timerfd_settime(timer, 0, &spec, 0));
    ready();
    uint64_t got = 0;
    CHECK_EQUAL(read(timer, &got, 8), 8);
    double took = now() - from;
    CHECK_EQUAL(got, 1);
    if (took < 1.2 || took > 2.2) FAIL("after %f s", took);
    while (go_on()) {}
    PASS();
}
