// object: `epoll_wait` and `poll` called again and again: each call has its own limit
// status: captured
#include "object.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>

static int ends[2];

static void *feed(void *unused) {
    while (!object_asked) {
        usleep(900);
        if (write(ends[1], "x", 1) != 1) break;
    }
    return unused;
}

int main(void) {
    pthread_t thread;
    CHECK(!pipe(ends));
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, ends[0], &event));
    CHECK(!pthread_create(&thread, 0, feed, 0));
    ready();
    while (!object_asked) {
        char byte;
        double from = now();
        // Found in the same call at every stop, and never the same one for long.
        int got = epoll_wait(set, &event, 1, 300);
        if (got == 0 && now() - from < 0.2999) FAIL("over after %f s", now() - from);
        if (got == 1) CHECK(read(ends[0], &byte, 1) == 1);
        CHECK(got >= 0 || object_asked);
    }
    PASS();
}
