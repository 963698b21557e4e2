// object: POSIX timers with their ids, some deleted, some not set
// status: captured
// note: Linux 6.15 or newer gives an id that is asked for; before, ids up to 100,000
#include "timers/timer.h"

int main(void) {
    int ids[40];
    double from = now();
    for (int i = 0; i < 40; i++) {
        ids[i] = timer_make(i % 2 ? CLOCK_REALTIME : CLOCK_MONOTONIC, i % 3 ? SIGEV_SIGNAL : SIGEV_NONE, SIGRTMIN + 2, 0);
        if (i % 5 != 4) timer_arm(ids[i], 0, 100 + i, 0);
    }
    for (int i = 0; i < 40; i += 7) CHECK(!syscall(SYS_timer_delete, ids[i]));
    ready();
    for (int round = 0; go_on(); round++) {
        // One is always another.
        CHECK(!syscall(SYS_timer_delete, ids[8]));
        ids[8] = timer_make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 2, 0);
        for (int i = 0; i < 40; i++) {
            struct itimerspec spec;
            double before = now() - from;
            int there = !syscall(SYS_timer_gettime, ids[i], &spec);
            double after = now() - from;
            CHECK_EQUAL(there, i % 7 != 0);
            if (!there || i == 8) continue;
            double left = spec.it_value.tv_sec + spec.it_value.tv_nsec / 1e9;
            if (i % 5 == 4) CHECK(left == 0);
            else if (left + after < 100 + i || left + before > 100.2 + i) FAIL("timer %d has %f", i, left);
        }
    }
    PASS();
}
