// object: traps that a process ignores, that it blocks while one waits, and that wait for its only thread
// status: captured
// note: who sent a SIGTRAP that is blocked is not kept
#include "object.h"
#include <sys/wait.h>

static volatile long traps;

static void trapped(int number) {
    CHECK_EQUAL(number, SIGTRAP);
    traps++;
}

static void is_ignored(void) {
    struct sigaction now;
    CHECK(!sigaction(SIGTRAP, 0, &now));
    CHECK(now.sa_handler == SIG_IGN);
    raise(SIGTRAP);
}

int main(void) {
    int ask[2];
    CHECK(!pipe(ask));
    pid_t blocking = fork();
    if (!blocking) {
        sigset_t set, waiting;
        char byte;
        struct sigaction action = {.sa_handler = trapped};
        CHECK(!sigaction(SIGTRAP, &action, 0));
        sigemptyset(&set);
        sigaddset(&set, SIGTRAP);
        CHECK(!sigprocmask(SIG_BLOCK, &set, 0));
        raise(SIGTRAP);
        close(ask[1]);
        // Ends when its parent is asked for its verdict.
        while (read(ask[0], &byte, 1) > 0) {}
        CHECK(!sigpending(&waiting) && sigismember(&waiting, SIGTRAP));
        CHECK_EQUAL(traps, 0);
        CHECK(!sigprocmask(SIG_UNBLOCK, &set, 0));
        CHECK_EQUAL(traps, 1);
        _exit(0);
    }
    close(ask[0]);
    signal(SIGTRAP, SIG_IGN);
    ready();
    while (go_on()) is_ignored();
    close(ask[1]);
    int status;
    CHECK_EQUAL(waitpid(blocking, &status, 0), blocking);
    CHECK_EQUAL(status, 0);
    PASS();
}
