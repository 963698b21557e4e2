// object: POSIX timer, once
// status: captured
#include "timers/timer.h"

static volatile double at;

static void over(int signal) {
    (void)signal;
    if (at) timer_strange++;
    at = now();
}

int main(void) {
    signal(SIGUSR2, over);
    int id = timer_make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGUSR2, 0);
    double from = now();
    timer_arm(id, 0, 1.5, 0);
    ready();
    double gap = 0, last = now();
    while (go_on() || now() < from + 2.2) {
        if (last > from + 1.2 && now() - last > gap) gap = now() - last;
        last = now();
        if (object_asked) usleep(2000);
    }
    if (at < from + 1.5 || at > from + 1.8 + gap) FAIL("after %f s", at - from);
    CHECK_EQUAL(timer_strange, 0);
    CHECK(timer_left(id) == 0);
    PASS();
}
