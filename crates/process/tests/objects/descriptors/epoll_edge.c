// object: epoll, edge-triggered, with a thread that waits
// status: captured
// note: an entry that is ready reports once more after a failover
#include "object.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>

static int set, ends[2];
static volatile unsigned seen;

static void *serve(void *nothing) {
    for (;;) {
        struct epoll_event event;
        unsigned value;
        if (epoll_wait(set, &event, 1, -1) != 1) continue;
        while (read(ends[0], &value, 4) == 4) {
            CHECK_EQUAL(value, seen);
            seen++;
        }
        CHECK_EQUAL(errno, EAGAIN);
    }
    return nothing;
}

int main(void) {
    set = epoll_create1(0);
    CHECK(!pipe2(ends, O_NONBLOCK));
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, ends[0], &event));
    pthread_t thread;
    pthread_create(&thread, 0, serve, 0);
    ready();
    unsigned sent = 0;
    do {
        CHECK(write(ends[1], &sent, 4) == 4);
        sent++;
        double begun = now();
        while (seen < sent) {
            if (now() > begun + 10) FAIL("%u of %u seen", seen, sent);
            usleep(50);
        }
    } while (go_on());
    PASS();
}
