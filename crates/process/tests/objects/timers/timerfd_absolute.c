// object: timerfd until a time, of every clock
// status: captured
#include "timers/timer.h"
#include <sys/timerfd.h>

int main(void) {
    int clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME}, timers[3];
    double from = now();
    for (int i = 0; i < 3; i++) {
        struct itimerspec spec = {0};
        clock_gettime(clocks[i], &spec.it_value);
        spec.it_value.tv_sec += 100 + i;
        timers[i] = timerfd_create(clocks[i], 0);
        CHECK(!timerfd_settime(timers[i], TFD_TIMER_ABSTIME, &spec, 0));
    }
    ready();
    while (go_on()) {
        for (int i = 0; i < 3; i++) {
            struct itimerspec spec;
            double before = now() - from;
            CHECK(!timerfd_gettime(timers[i], &spec));
            double left = spec.it_value.tv_sec + spec.it_value.tv_nsec / 1e9, after = now() - from;
            // The time of day goes on by itself.
            double early = clocks[i] == CLOCK_REALTIME ? 5 : 0.001;
            if (left + after < 100 + i - early || left + before > 100.2 + i) FAIL("timer %d has %f", i, left);
        }
    }
    PASS();
}
