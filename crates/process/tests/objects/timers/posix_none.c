// object: POSIX timer that is only looked at (SIGEV_NONE)
// status: captured
#include "timers/timer.h"

int main(void) {
    int id = timer_make(CLOCK_BOOTTIME, SIGEV_NONE, 0, 0);
    timer_arm(id, 0, 100, 0);
    double end = now() + 100;
    ready();
    while (go_on()) {
        double error = now() + timer_left(id) - end;
        if (error < -0.002 || error > 0.05) FAIL("it is off by %.6f s", error);
    }
    PASS();
}
