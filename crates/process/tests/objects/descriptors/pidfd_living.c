// object: pidfd of a process that lives
// status: captured
// note: inode numbers of pidfds change; a pidfd of a single thread is refused
#include "object.h"
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>

int main(void) {
    int child = fork();
    if (!child)
        for (;;) pause();
    int fd = syscall(SYS_pidfd_open, child, 0), own = syscall(SYS_pidfd_open, getpid(), 0);
    CHECK(fd >= 0 && own >= 0);
    ready();
    do {
        struct pollfd ask[] = {{fd, POLLIN, 0}, {own, POLLIN, 0}};
        CHECK_EQUAL(poll(ask, 2, 0), 0);
        CHECK(!syscall(SYS_pidfd_send_signal, fd, 0, 0, 0));
    } while (go_on());
    CHECK(!syscall(SYS_pidfd_send_signal, fd, SIGKILL, 0, 0));
    struct pollfd ask = {fd, POLLIN, 0};
    CHECK_EQUAL(poll(&ask, 1, 5000), 1);
    siginfo_t info = {0};
    CHECK(!waitid(P_PIDFD, fd, &info, WEXITED));
    CHECK_EQUAL(info.si_pid, child);
    CHECK_EQUAL(info.si_status, SIGKILL);
    CHECK(syscall(SYS_pidfd_send_signal, fd, 0, 0, 0) < 0 && errno == ESRCH);
    PASS();
}
