// object: POSIX timer whose signal waits, with its overrun
// status: captured
// note: what has expired since the signal was sent is counted when it is received
#include "timers/timer.h"

int main(void) {
    timer_handle(SIGRTMIN + 1);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    sigprocmask(SIG_BLOCK, &set, 0);
    int id = timer_make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 1, 0);
    double from = now();
    timer_arm(id, 0, 0.003, 0.003);
    ready();
    // It is let in now and then.
    for (int round = 1; go_on(); round++) {
        if (round % 40) continue;
        sigprocmask(SIG_UNBLOCK, &set, 0);
        sigprocmask(SIG_BLOCK, &set, 0);
    }
    usleep(200000);
    int signals = timer_signals;
    sigprocmask(SIG_UNBLOCK, &set, 0);
    CHECK(timer_signals > signals);
    timer_check_count(from, 0.003);
    PASS();
}
