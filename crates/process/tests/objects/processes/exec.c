// object: the memory, handlers and names after an `exec` in the middle
// status: captured
#include "object.h"

int main(int count, char **arguments) {
    if (count == 1) {
        signal(SIGHUP, SIG_IGN);
        signal(SIGUSR2, object_ask);
        char *again[] = {arguments[0], "again", 0}, *environment[] = {"KEPT=yes", 0};
        execve("/proc/self/exe", again, environment);
        _exit(1);
    }
    struct sigaction action;
    int pid = getpid();
    static volatile long counter;
    ready();
    while (go_on()) {
        counter++;
        CHECK(!strcmp(arguments[1], "again") && !strcmp(getenv("KEPT"), "yes"));
        CHECK(!sigaction(SIGHUP, 0, &action) && action.sa_handler == SIG_IGN);
        CHECK(!sigaction(SIGUSR2, 0, &action) && action.sa_handler == SIG_DFL);
        CHECK_EQUAL(getpid(), pid);
    }
    CHECK(counter > 5);
    PASS();
}
