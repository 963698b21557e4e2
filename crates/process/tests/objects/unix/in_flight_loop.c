// object: unix sockets that are in flight in each other's queues
// status: refused: in flight in each other's queues
// note: kept as soon as one is received
#include "unix/rights.h"

int main(void) {
    int one[2], other[2];
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, one) && !socketpair(AF_UNIX, SOCK_STREAM, 0, other));
    give(one[0], "other", 5, &other[1], 1, 0);
    give(other[0], "one", 3, &one[1], 1, 0);
    ready();
    while (go_on()) {}
    PASS();
}
