// object: pidfd of a process that was waited for
// status: captured
// note: how it ended (PIDFD_GET_INFO) is not kept
#include "object.h"
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>

int main(void) {
    int child = fork();
    if (!child) _exit(42);
    int fd = syscall(SYS_pidfd_open, child, 0);
    CHECK_EQUAL(waitpid(child, 0, 0), child);
    ready();
    do {
        struct pollfd ask = {fd, POLLIN, 0};
        CHECK_EQUAL(poll(&ask, 1, 0), 1);
        CHECK(syscall(SYS_pidfd_send_signal, fd, 0, 0, 0) < 0 && errno == ESRCH);
    } while (go_on());
    PASS();
}
