// object: the group of a process that has ended and was not waited for, which others join
// status: captured
#include "object.h"
#include <sys/wait.h>

int main(void) {
    ready();
    do {
        pid_t first = fork(), second;
        if (!first) _exit(3);
        siginfo_t info;
        while (waitid(P_PID, first, &info, WEXITED | WNOWAIT)) CHECK(errno == EINTR);
        // It has ended, and leads a group from here on, in which a shell puts the rest of a pipeline.
        CHECK(!setpgid(first, first));
        CHECK((second = fork()) >= 0);
        if (!second) {
            for (;;) pause();
        }
        CHECK(!setpgid(second, first));
        int going = go_on();
        CHECK_EQUAL(getpgid(first), first);
        CHECK_EQUAL(getpgid(second), first);
        // There is no such process.
        CHECK(setpgid(4000000, 0) && errno == ESRCH);
        CHECK(!kill(-first, SIGKILL));
        int status;
        CHECK(waitpid(first, &status, 0) == first && WIFEXITED(status) && WEXITSTATUS(status) == 3);
        while (waitpid(second, &status, 0) != second) CHECK(errno == EINTR);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        // Its leader and members are gone: so is the group.
        CHECK(kill(-first, 0) && errno == ESRCH);
        if (!going) break;
    } while (1);
    PASS();
}
