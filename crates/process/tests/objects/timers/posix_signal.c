// object: POSIX timer (`timer_create`) by the monotonic clock, periodic, SIGEV_SIGNAL
// status: captured
// note: time left, interval and missed expirations are exact; up to 512 in a process; the overrun count of the last signal received is not kept
#include "timers/timer.h"

int main(void) {
    timer_handle(SIGRTMIN + 1);
    int id = timer_make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 1, 0);
    double from = now();
    timer_arm(id, 0, 0.007, 0.007);
    ready();
    while (go_on()) CHECK(timer_left(id) <= 0.01);
    timer_check_count(from, 0.007);
    PASS();
}
