// object: POSIX timers of a child, and those not inherited by one
// status: captured
#include "timers/timer.h"
#include <sys/mman.h>
#include <sys/wait.h>

int main(void) {
    timer_handle(SIGRTMIN + 1);
    int id = timer_make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 1, 0);
    timer_arm(id, 0, 0.01, 0.01);
    int ends[2];
    CHECK(!pipe(ends));
    pid_t child = fork();
    if (!child) {
        struct itimerspec spec;
        if (!syscall(SYS_timer_gettime, id, &spec)) _exit(3);
        timer_ticks = 0;
        int mine = timer_make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 1, 0);
        double from = now();
        timer_arm(mine, 0, 0.005, 0.005);
        char byte;
        while (read(ends[0], &byte, 1) < 0) {}
        double ticks = (now() - from) / 0.005;
        if (timer_ticks > ticks + 1 || timer_ticks < ticks - 8) _exit(4);
        _exit(timer_strange ? 5 + timer_strange % 200 : 0);
    }
    double from = now();
    ready();
    while (go_on()) {}
    CHECK(timer_ticks > (now() - from) / 0.01 - 6);
    CHECK(write(ends[1], "x", 1) == 1);
    int status = -1;
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    CHECK_EQUAL(status, 0);
    PASS();
}
