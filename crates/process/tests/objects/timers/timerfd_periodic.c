// object: timerfd, periodic, read and not read
// status: captured
#include "timers/timer.h"
#include <sys/timerfd.h>

int main(void) {
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), slow = timerfd_create(CLOCK_BOOTTIME, 0);
    struct itimerspec spec = {{0, 5000000}, {0, 5000000}}, rare = {{0, 300000000}, {0, 300000000}};
    double from = now();
    CHECK(!timerfd_settime(timer, 0, &spec, 0) && !timerfd_settime(slow, 0, &rare, 0));
    uint64_t ticks = 0, got;
    ready();
    while (go_on())
        if (read(timer, &got, 8) == 8) ticks += got;
    if (read(timer, &got, 8) == 8) ticks += got;
    double expected = (now() - from) / 0.005;
    if (ticks > expected || ticks < expected - 2) FAIL("%lu ticks, not %f", ticks, expected);
    CHECK(read(slow, &got, 8) == 8);
    expected = (now() - from) / 0.3;
    if (got > expected || got < expected - 1.2) FAIL("%lu slow ticks, not %f", got, expected);
    PASS();
}
