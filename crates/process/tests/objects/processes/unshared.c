// object: a namespace of its own, made by a process that has ended, in which a child lives on
// status: refused: host name namespace
// note: let the program do without namespaces of its own; protected again when the last process in it has ended
#include "object.h"
#include <sched.h>
#include <sys/wait.h>

int main(void) {
    pid_t child = fork();
    if (!child) {
        CHECK(!unshare(CLONE_NEWUTS));
        if (fork()) _exit(0);
        for (;;) pause();
    }
    CHECK(waitpid(child, 0, 0) == child);
    ready();
    while (go_on()) {}
    PASS();
}
