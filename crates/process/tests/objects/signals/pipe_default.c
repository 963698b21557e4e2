// object: SIGPIPE as it is by default, which ends a process that writes to nobody
// status: captured
#include "object.h"
#include <sys/wait.h>

int main(void) {
    struct sigaction action;
    CHECK(!sigaction(SIGPIPE, 0, &action) && action.sa_handler == SIG_DFL);
    ready();
    while (go_on()) {
        CHECK(!sigaction(SIGPIPE, 0, &action));
        CHECK(action.sa_handler == SIG_DFL);
        int ends[2], status;
        CHECK(!pipe(ends) && !close(ends[0]));
        pid_t child = fork();
        if (!child) _exit(write(ends[1], "x", 1) == 1 ? 1 : 2);
        close(ends[1]);
        CHECK_EQUAL(waitpid(child, &status, 0), child);
        CHECK_EQUAL(status, SIGPIPE);
    }
    PASS();
}
