// object: POSIX timer by the time of day, absolute
// status: captured
// note: goes on with the time that was left: not moved by a difference between the two hosts' times of day
#include "timers/timer.h"

int main(void) {
    timer_handle(SIGRTMIN + 1);
    int id = timer_make(CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN + 1, 0);
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    double from = now();
    timer_arm(id, TIMER_ABSTIME, time.tv_sec + 1 + time.tv_nsec / 1e9, 0.01);
    ready();
    while (go_on() || now() < from + 1.5) {
        if (object_asked) usleep(2000);
        CHECK(timer_left(id) <= 1);
    }
    timer_check_count(from + 0.99, 0.01);
    PASS();
}
