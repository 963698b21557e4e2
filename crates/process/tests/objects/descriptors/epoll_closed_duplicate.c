// object: epoll watching a file whose number was closed while a duplicate lives on
// status: captured
#include "object.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

int main(void) {
    int set = epoll_create1(0), first = eventfd(0, EFD_NONBLOCK), kept = dup(first);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 1};
    CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, first, &event));
    close(first);
    // The same number, another file: two entries of one number.
    int second = eventfd(0, EFD_NONBLOCK);
    CHECK_EQUAL(second, first);
    event.data.u64 = 2;
    CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, second, &event));
    ready();
    do {
        uint64_t one = 1;
        CHECK_EQUAL(epoll_wait(set, &event, 1, 0), 0);
        CHECK(write(kept, &one, 8) == 8);
        CHECK_EQUAL(epoll_wait(set, &event, 1, 0), 1);
        CHECK_EQUAL(event.data.u64, 1);
        CHECK(read(kept, &one, 8) == 8 && one == 1);
        CHECK(write(second, &one, 8) == 8);
        CHECK_EQUAL(epoll_wait(set, &event, 1, 0), 1);
        CHECK_EQUAL(event.data.u64, 2);
        CHECK(read(second, &one, 8) == 8 && one == 1);
    } while (go_on());
    PASS();
}
