// object: process ids that are given again at once, of children and of orphans that init waits for
// status: captured
// note: after a failover the kernel counts from low ids again, so that those of processes that have ended come back soon
#include "object.h"
#include <linux/sched.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>

// A child with this id. It can be given once nobody has it.
static pid_t fork_as(pid_t wanted) {
    struct clone_args args = {.exit_signal = SIGCHLD, .set_tid = (uint64_t)&wanted, .set_tid_size = 1};
    for (int tries = 0; tries < 20000; tries++) {
        pid_t pid = syscall(SYS_clone3, &args, sizeof args);
        if (pid >= 0 || errno != EEXIST) return pid;
        usleep(100);
    }
    return -1;
}

int main(void) {
    enum { CHILD = 4001, ORPHAN };
    ready();
    while (go_on()) {
        for (int again = 0; again < 3; again++) {
            int status;
            pid_t child = fork_as(CHILD);
            if (!child) _exit(again + 1);
            CHECK_EQUAL(child, CHILD);
            CHECK_EQUAL(waitpid(child, &status, 0), CHILD);
            CHECK_EQUAL(WEXITSTATUS(status), again + 1);
        }
        pid_t middle = fork();
        if (!middle) {
            pid_t orphan = fork_as(ORPHAN);
            if (!orphan) {
                while (getppid() != 1) usleep(100);
                _exit(0);
            }
            _exit(orphan == ORPHAN ? 0 : 1);
        }
        int status;
        CHECK_EQUAL(waitpid(middle, &status, 0), middle);
        CHECK_EQUAL(status, 0);
    }
    PASS();
}
