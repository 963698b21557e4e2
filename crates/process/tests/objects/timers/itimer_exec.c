// object: `setitimer` (ITIMER_REAL) over `exec`
// status: captured
#include "timers/timer.h"
#include <sys/time.h>

int main(int count, char **arguments) {
    if (count == 1) {
        // The program's own handler would not outlast the exec.
        signal(SIGALRM, SIG_IGN);
        struct itimerval spec = {{7, 0}, {3600, 0}};
        CHECK(!setitimer(ITIMER_REAL, &spec, 0));
        char *again[] = {arguments[0], "again", 0};
        execv("/proc/self/exe", again);
        _exit(1);
    }
    ready();
    double from = now();
    do {
        struct itimerval left;
        CHECK(!getitimer(ITIMER_REAL, &left));
        CHECK_EQUAL(left.it_interval.tv_sec, 7);
        CHECK(left.it_value.tv_sec > 3300 && left.it_value.tv_sec <= 3600);
        usleep(1000);
    } while (go_on() || now() < from + 0.5);
    PASS();
}
