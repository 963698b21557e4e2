// object: POSIX timer that runs a function (SIGEV_THREAD, glibc)
// status: captured
#include "timers/timer.h"

static volatile int calls;

static void call(union sigval value) {
    calls += value.sival_int;
}

int main(void) {
    struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = call, .sigev_value.sival_int = 3};
    timer_t timer;
    CHECK(!timer_create(CLOCK_MONOTONIC, &event, &timer));
    struct itimerspec spec = {{0, 20000000}, {0, 20000000}};
    CHECK(!timer_settime(timer, 0, &spec, 0));
    ready();
    int before = calls;
    while (go_on()) {}
    double end = now() + 5;
    int there = calls;
    CHECK(there > before && there % 3 == 0);
    while (calls < there + 15 && now() < end) usleep(5000);
    CHECK(calls >= there + 15);
    CHECK(!timer_delete(timer));
    PASS();
}
