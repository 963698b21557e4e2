// object: calls that a handler interrupts: EINTR and what is left of a sleep
// status: captured
#include "object.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/time.h>

static void handle(int signal) {
    (void)signal;
}

int main(void) {
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, 0);
    int ends[2], set = epoll_create1(0);
    CHECK(!pipe(ends));
    ready();
    for (int round = 0; !object_asked; round++) {
        struct itimerval soon = {{0, 0}, {0, 30000}};
        struct timespec wish = {5, 0}, left = {9, 9};
        struct epoll_event event;
        struct pollfd entry = {ends[0], POLLIN, 0};
        double from = now();
        setitimer(ITIMER_REAL, &soon, 0);
        switch (round % 3) {
        case 0:
            CHECK(nanosleep(&wish, &left) == -1 && errno == EINTR);
            double slept = 5 - left.tv_sec - left.tv_nsec / 1e9, took = now() - from;
            if (slept > took + 0.001 || (!object_asked && slept < 0.02)) FAIL("slept %f of %f", slept, took);
            break;
        case 1: CHECK(epoll_wait(set, &event, 1, 5000) == -1 && errno == EINTR); break;
        case 2: CHECK(poll(&entry, 1, 5000) == -1 && errno == EINTR); break;
        }
        CHECK(now() - from >= 0.029 || object_asked);
        CHECK(now() - from < 4);
    }
    PASS();
}
