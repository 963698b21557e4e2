// object: epoll, one-shot entries, armed and fired
// status: captured
#include "object.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

int main(void) {
    int set = epoll_create1(0), fd = eventfd(1, 0), quiet = eventfd(0, 0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 5};
    CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    event.data.u64 = 6;
    CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, quiet, &event));
    CHECK_EQUAL(epoll_wait(set, &event, 1, 0), 1);
    ready();
    do {
        // It has fired, and stays silent though it is ready. Being asked for the verdict interrupts it (`signal(7)`).
        int got = epoll_wait(set, &event, 1, 1);
        if (got < 0 && errno == EINTR && object_asked) got = 0;
        CHECK_EQUAL(got, 0);
        event.events = EPOLLIN | EPOLLONESHOT;
        event.data.u64 = 7;
        CHECK(!epoll_ctl(set, EPOLL_CTL_MOD, fd, &event));
        CHECK_EQUAL(epoll_wait(set, &event, 1, 0), 1);
        CHECK_EQUAL(event.data.u64, 7);
    } while (go_on());
    uint64_t one = 1;
    CHECK(write(quiet, &one, 8) == 8);
    CHECK_EQUAL(epoll_wait(set, &event, 1, 0), 1);
    CHECK_EQUAL(event.data.u64, 6);
    PASS();
}
