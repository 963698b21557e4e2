// object: `alarm`
// status: captured
#include "timers/timer.h"

static volatile double at;

static void over(int signal) {
    (void)signal;
    at = now();
}

int main(void) {
    signal(SIGALRM, over);
    double from = now();
    alarm(2);
    ready();
    double gap = 0, last = now();
    while (go_on() || now() < from + 2.6) {
        if (last > from + 1.5 && now() - last > gap) gap = now() - last;
        last = now();
        if (object_asked) usleep(2000);
    }
    if (at < from + 2 || at > from + 2.3 + gap) FAIL("after %f s", at - from);
    PASS();
}
