// object: POSIX timer by the processor time of a thread
// status: captured
// note: as for a process; by its own time (CLOCK_THREAD_CPUTIME_ID) refused if several threads have made one within an epoch
#include "timers/timer.h"
#include <pthread.h>

static volatile int own = -1;

_Noreturn static void *work(void *unused) {
    (void)unused;
    own = timer_make(CLOCK_THREAD_CPUTIME_ID, SIGEV_SIGNAL, SIGRTMIN + 1, 0);
    timer_arm(own, 0, 0.004, 0.004);
    for (;;) {}
}

int main(void) {
    timer_handle(SIGRTMIN + 1);
    pthread_t thread;
    CHECK(!pthread_create(&thread, 0, work, 0));
    while (own < 0) usleep(1000);
    clockid_t clock;
    CHECK(!pthread_getcpuclockid(thread, &clock));
    int far = timer_make(clock, SIGEV_NONE, 0, 0);
    timer_arm(far, 0, 50, 0);
    ready();
    double last = 50;
    while (go_on()) {
        double left = timer_left(far);
        if (left > last || left < last - 1) FAIL("%f left, not %f", left, last);
        last = left;
    }
    CHECK(last < 49.98);
    int there = timer_ticks;
    CHECK(there > 3);
    for (double end = now() + 20; timer_ticks < there + 5; usleep(1000)) CHECK(now() < end);
    CHECK_EQUAL(timer_strange, 0);
    PASS();
}
