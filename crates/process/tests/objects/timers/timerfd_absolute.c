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
            CHECK(!timerfd_gettime(timers[i], &spec));
            double error = spec.it_value.tv_sec + spec.it_value.tv_nsec / 1e9 + now() - from - 100 - i;
            if (error < -0.05 || error > 0.1) FAIL("timer %d is off by %f", i, error);
        }
    }
    PASS();
}
