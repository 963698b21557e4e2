// object: `setitimer` (ITIMER_REAL), periodic
// status: captured
// note: what has expired while nothing ran is sent once
#include "timers/timer.h"
#include <sys/time.h>

static void tick(int signal) {
    (void)signal;
    timer_ticks++;
}

int main(void) {
    struct sigaction action = {.sa_handler = tick, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, 0);
    struct itimerval spec = {{0, 8000}, {0, 8000}};
    double from = now();
    CHECK(!setitimer(ITIMER_REAL, &spec, 0));
    ready();
    while (go_on()) {
        struct itimerval left;
        CHECK(!getitimer(ITIMER_REAL, &left));
        CHECK(left.it_interval.tv_usec == 8000 && left.it_value.tv_sec == 0 && left.it_value.tv_usec <= 8001);
        CHECK(timer_ticks <= (now() - from) / 0.008 + 1);
    }
    int there = timer_ticks;
    CHECK(there > 5);
    for (double end = now() + 10; timer_ticks < there + 5; usleep(1000)) CHECK(now() < end);
    PASS();
}
