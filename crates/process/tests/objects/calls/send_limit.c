// object: `send`, `write` on a socket with SO_SNDTIMEO
// status: captured
// note: goes on with what is left, counted from the first stop that found it waiting: late by up to the length of an epoch, never early
#include "calls/wait.h"
#include <sys/socket.h>

static void wait_once(void) {
    int ends[2];
    CHECK(!socketpair(AF_UNIX, SOCK_DGRAM, 0, ends));
    char bytes[16] = {0};
    while (send(ends[0], bytes, sizeof bytes, MSG_DONTWAIT) > 0) {}
    struct timeval limit = {1, 500000};
    setsockopt(ends[0], SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    wait_from = now();
    CHECK_EQUAL(send(ends[0], bytes, sizeof bytes, 0), -1);
    CHECK_EQUAL(errno, EAGAIN);
}

WAIT_MAIN
