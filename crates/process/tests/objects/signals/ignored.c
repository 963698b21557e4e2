// object: signals that are ignored while calls wait: nothing is interrupted
// status: captured
#include "object.h"
#include <sys/epoll.h>
#include <sys/wait.h>

int main(void) {
    int set = epoll_create1(0);
    signal(SIGWINCH, SIG_DFL);
    signal(SIGHUP, SIG_IGN);
    pid_t child = fork();
    if (!child)
        for (pid_t parent = getppid(); getppid() == parent; usleep(1500)) {
            kill(parent, SIGWINCH);
            kill(parent, SIGHUP);
        }
    ready();
    while (!object_asked) {
        struct epoll_event event;
        double from = now();
        int result = epoll_wait(set, &event, 1, 40);
        if (result && !object_asked) FAIL("epoll_wait gave %d", result);
        CHECK(object_asked || now() - from >= 0.0399);
    }
    kill(child, SIGKILL);
    CHECK_EQUAL(waitpid(child, 0, 0), child);
    PASS();
}
