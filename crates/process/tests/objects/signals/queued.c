// object: blocked signals that wait, queued real-time ones with their values and order
// status: captured
#include "object.h"

int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    sigaddset(&set, SIGRTMIN + 2);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, 0);
    int sent = 0, taken = 0;
    for (; sent < 40; sent++) sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = sent});
    sigqueue(getpid(), SIGUSR2, (union sigval){.sival_int = 99});
    ready();
    for (int round = 0; go_on(); round++) {
        siginfo_t info;
        struct timespec none = {0, 0};
        CHECK_EQUAL(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = sent++}), 0);
        sigset_t only;
        sigemptyset(&only);
        sigaddset(&only, SIGRTMIN + 1);
        CHECK_EQUAL(sigtimedwait(&only, &info, &none), SIGRTMIN + 1);
        CHECK_EQUAL(info.si_value.sival_int, taken++);
        CHECK(info.si_code == SI_QUEUE && info.si_pid == getpid());
    }
    siginfo_t info;
    CHECK_EQUAL(sigwaitinfo(&set, &info), SIGUSR2);
    CHECK_EQUAL(info.si_value.sival_int, 99);
    PASS();
}
