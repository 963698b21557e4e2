// object: `setitimer` (ITIMER_PROF, ITIMER_VIRTUAL)
// status: captured
#include "timers/timer.h"
#include <sys/time.h>

static volatile int virtual_ticks;

static void tick(int signal) {
    if (signal == SIGPROF) timer_ticks++;
    else virtual_ticks++;
}

int main(void) {
    struct sigaction action = {.sa_handler = tick, .sa_flags = SA_RESTART};
    sigaction(SIGPROF, &action, 0);
    sigaction(SIGVTALRM, &action, 0);
    struct itimerval spec = {{0, 10000}, {0, 10000}};
    CHECK(!setitimer(ITIMER_PROF, &spec, 0) && !setitimer(ITIMER_VIRTUAL, &spec, 0));
    ready();
    while (!object_asked) {
        for (volatile int i = 0; i < 20000; i++) {}
        struct itimerval left;
        CHECK(!getitimer(ITIMER_VIRTUAL, &left));
        CHECK_EQUAL(left.it_interval.tv_usec, 10000);
    }
    int there = timer_ticks, also = virtual_ticks;
    CHECK(there > 2 && also > 2);
    for (double end = now() + 20; timer_ticks < there + 3 || virtual_ticks < also + 3;) CHECK(now() < end);
    PASS();
}
