// object: an epoll instance that is in flight in a unix socket, and nowhere else
// status: refused: an epoll instance (in flight
// note: the numbers of its entries are those of a process that has it; kept as soon as it is received
#include "unix/rights.h"
#include <sys/epoll.h>

int main(void) {
    int pair[2], set = epoll_create1(0);
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    give(pair[0], "epoll", 5, &set, 1, 0);
    close(set);
    ready();
    while (go_on()) {}
    PASS();
}
