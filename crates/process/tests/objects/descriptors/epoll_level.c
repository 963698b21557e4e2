// object: epoll, level-triggered, with many entries
// status: captured
#include "object.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

#define COUNT 300

int main(void) {
    int set = epoll_create1(0), fds[COUNT];
    for (int i = 0; i < COUNT; i++) {
        fds[i] = eventfd(0, EFD_NONBLOCK);
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = i * 1000003ull};
        CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, fds[i], &event));
    }
    ready();
    unsigned step = 0;
    do {
        int which = step++ * 7 % COUNT;
        uint64_t value = 1;
        struct epoll_event events[4];
        CHECK(write(fds[which], &value, 8) == 8);
        for (int twice = 0; twice < 2; twice++) {
            CHECK_EQUAL(epoll_wait(set, events, 4, 0), 1);
            CHECK_EQUAL(events[0].data.u64, which * 1000003ull);
            CHECK_EQUAL(events[0].events, EPOLLIN);
        }
        CHECK(read(fds[which], &value, 8) == 8);
        CHECK_EQUAL(epoll_wait(set, events, 4, 0), 0);
    } while (go_on());
    PASS();
}
