// object: POSIX timer that is only looked at (SIGEV_NONE)
// status: captured
#include "timers/timer.h"

int main(void) {
    int id = timer_make(CLOCK_BOOTTIME, SIGEV_NONE, 0, 0);
    double end = now() + 100;
    timer_arm(id, 0, 100, 0);
    ready();
    while (go_on()) {
        double before = now(), left = timer_left(id), after = now();
        if (after + left < end || before + left > end + 0.1) FAIL("it is off by %.6f s", before + left - end);
    }
    PASS();
}
