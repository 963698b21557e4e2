// object: epoll watching another epoll
// status: captured
#include "object.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

int main(void) {
    int outer = epoll_create1(0), inner = epoll_create1(0), fd = eventfd(0, EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 1};
    CHECK(!epoll_ctl(outer, EPOLL_CTL_ADD, inner, &event));
    event.data.u64 = 2;
    CHECK(!epoll_ctl(inner, EPOLL_CTL_ADD, fd, &event));
    ready();
    do {
        uint64_t value = 1;
        CHECK_EQUAL(epoll_wait(outer, &event, 1, 0), 0);
        CHECK(write(fd, &value, 8) == 8);
        CHECK_EQUAL(epoll_wait(outer, &event, 1, 0), 1);
        CHECK_EQUAL(event.data.u64, 1);
        CHECK_EQUAL(epoll_wait(inner, &event, 1, 0), 1);
        CHECK_EQUAL(event.data.u64, 2);
        CHECK(read(fd, &value, 8) == 8);
    } while (go_on());
    PASS();
}
