// object: `setitimer` (ITIMER_REAL), stopped and set again
// status: captured
#include "timers/timer.h"
#include <sys/time.h>

static long seconds_left(void) {
    struct itimerval left;
    CHECK(!getitimer(ITIMER_REAL, &left));
    return left.it_value.tv_sec;
}

int main(void) {
    ready();
    double from = now();
    for (int pause = 0; go_on() || now() < from + 0.5; pause = (pause + 7) % 40) {
        struct itimerval spec = {{0, 0}, {3600, 0}}, none = {{0, 0}, {0, 0}};
        CHECK(!setitimer(ITIMER_REAL, &spec, 0));
        for (int i = 0; i < 5; i++, usleep(1000)) CHECK(seconds_left() > 3300);
        CHECK(!setitimer(ITIMER_REAL, &none, 0));
        // Checkpoints that find none, some or many.
        for (int i = 0; i < pause; i++, usleep(1000)) CHECK_EQUAL(seconds_left(), 0);
    }
    PASS();
}
