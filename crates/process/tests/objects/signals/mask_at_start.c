// object: a program that starts with no signal blocked, and is told that its child has ended
// status: captured
#include "object.h"
#include <sys/wait.h>

static volatile sig_atomic_t told;

static void count(int signal) {
    (void)signal;
    told++;
}

int main(void) {
    sigset_t blocked;
    CHECK(!sigprocmask(SIG_BLOCK, 0, &blocked));
    for (int signal = 1; signal < 32; signal++) CHECK_EQUAL(sigismember(&blocked, signal), 0);
    struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
    sigaction(SIGCHLD, &action, 0);
    ready();
    int expected = 0;
    while (go_on()) {
        pid_t child = fork();
        if (child == 0) _exit(0);
        CHECK_EQUAL(waitpid(child, 0, 0), child);
        expected++;
        for (int tries = 0; tries < 5000 && told < expected; tries++) usleep(1000);
        CHECK_EQUAL(told, expected);
    }
    PASS();
}
