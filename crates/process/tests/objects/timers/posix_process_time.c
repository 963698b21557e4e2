// object: POSIX timer by the processor time of the process
// status: captured
// note: goes on with the time that was left; the clock itself starts at zero after a failover
#include "timers/timer.h"

int main(void) {
    timer_handle(SIGRTMIN + 1);
    int id = timer_make(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGRTMIN + 1, 0);
    timer_arm(id, 0, 0.004, 0.004);
    int far = timer_make(CLOCK_PROCESS_CPUTIME_ID, SIGEV_NONE, 0, 0);
    timer_arm(far, 0, 50, 0);
    ready();
    double last = 50;
    while (!object_asked) {
        double left = timer_left(far);
        CHECK(left <= last && left > last - 0.5);
        last = left;
        for (volatile int i = 0; i < 20000; i++) {}
    }
    CHECK(last < 49.99);
    int there = timer_ticks;
    CHECK(there > 3);
    for (double end = now() + 20; timer_ticks < there + 5;) CHECK(now() < end);
    CHECK_EQUAL(timer_strange, 0);
    PASS();
}
