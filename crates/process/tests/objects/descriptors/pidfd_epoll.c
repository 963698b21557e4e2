// object: pidfds of children in epoll, made by CLONE_PIDFD
// status: captured
// note: as event loops of Python, systemd and Go wait for children
#include "object.h"
#include <linux/sched.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int start(int set, int *pidfd) {
    struct clone_args arguments = {.flags = CLONE_PIDFD, .pidfd = (uint64_t)pidfd, .exit_signal = SIGCHLD};
    int child = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (!child)
        for (;;) pause();
    struct epoll_event event = {.events = EPOLLIN, .data.fd = *pidfd};
    CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, *pidfd, &event));
    return child;
}

int main(void) {
    int set = epoll_create1(0), fds[2], children[2], which = 0;
    for (int i = 0; i < 2; i++) children[i] = start(set, &fds[i]);
    ready();
    do {
        struct epoll_event event;
        CHECK_EQUAL(epoll_wait(set, &event, 1, 0), 0);
        kill(children[which], SIGTERM);
        int ready_now;
        while ((ready_now = epoll_wait(set, &event, 1, 5000)) < 0 && errno == EINTR) {}
        CHECK_EQUAL(ready_now, 1);
        CHECK_EQUAL(event.data.fd, fds[which]);
        siginfo_t info = {0};
        CHECK(!waitid(P_PIDFD, fds[which], &info, WEXITED));
        CHECK_EQUAL(info.si_pid, children[which]);
        // The other child has a duplicate, which would keep the entry alive.
        epoll_ctl(set, EPOLL_CTL_DEL, fds[which], 0);
        close(fds[which]);
        children[which] = start(set, &fds[which]);
        which = !which;
    } while (go_on());
    PASS();
}
