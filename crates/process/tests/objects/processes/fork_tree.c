// object: processes that fork, run other programs and end; exit codes, signals that ended them
// status: captured
#include "object.h"
#include <sys/wait.h>

int main(void) {
    ready();
    for (int round = 0; go_on(); round++) {
        pid_t child = fork();
        if (!child) {
            pid_t grand = vfork();
            if (!grand) {
                execl("/bin/sh", "sh", "-c", "exit 7", (char *)0);
                _exit(9);
            }
            int status = 0;
            if (waitpid(grand, &status, 0) != grand || !WIFEXITED(status) || WEXITSTATUS(status) != 7) _exit(1);
            if (round % 2) kill(getpid(), SIGTERM);
            _exit(42);
        }
        int status = 0;
        CHECK_EQUAL(waitpid(child, &status, 0), child);
        if (round % 2 && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM)) FAIL("the status is %#x in round %d", status, round);
        if (round % 2 == 0 && !(WIFEXITED(status) && WEXITSTATUS(status) == 42)) FAIL("the status is %#x in round %d", status, round);
    }
    CHECK(waitpid(-1, 0, WNOHANG) == -1 && errno == ECHILD);
    PASS();
}
