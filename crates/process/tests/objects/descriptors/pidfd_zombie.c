// object: pidfd of a process that has ended and was not waited for
// status: captured
#include "object.h"
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>

int main(void) {
    int child = fork();
    if (!child) _exit(42);
    int fd = syscall(SYS_pidfd_open, child, 0);
    struct pollfd ask = {fd, POLLIN, 0};
    CHECK_EQUAL(poll(&ask, 1, 5000), 1);
    ready();
    do {
        CHECK_EQUAL(poll(&ask, 1, 0), 1);
    } while (go_on());
    siginfo_t info = {0};
    CHECK(!waitid(P_PIDFD, fd, &info, WEXITED));
    CHECK_EQUAL(info.si_pid, child);
    CHECK_EQUAL(info.si_status, 42);
    PASS();
}
