// object: forks that fail after the memory was copied, with forks that succeed between them
// status: captured
// note: as where a control group allows no further process; here the id that is asked for is taken
#include "object.h"
#include <linux/sched.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>

int main(void) {
    pid_t taken = getpid();
    struct clone_args args = {.exit_signal = SIGCHLD, .set_tid = (uint64_t)&taken, .set_tid_size = 1};
    volatile int memory = 0;
    ready();
    while (go_on()) {
        memory++;
        CHECK(syscall(SYS_clone3, &args, sizeof args) == -1 && errno == EEXIST);
        memory++;
        int expected = memory, status;
        pid_t child = fork();
        if (!child) _exit(memory == expected ? 7 : 1);
        CHECK(child > 0);
        CHECK_EQUAL(waitpid(child, &status, 0), child);
        CHECK_EQUAL(WEXITSTATUS(status), 7);
        // Two failures in a row.
        CHECK(syscall(SYS_clone3, &args, sizeof args) == -1 && errno == EEXIST);
        CHECK(syscall(SYS_clone3, &args, sizeof args) == -1 && errno == EEXIST);
    }
    PASS();
}
