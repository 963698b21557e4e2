// object: `recv`, `read` on a socket with SO_RCVTIMEO
// status: captured
// note: goes on with what is left, counted from the first stop that found it waiting: late by up to the length of an epoch, never early
#include "calls/wait.h"
#include <sys/socket.h>

static void wait_once(void) {
    int ends[2];
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
    struct timeval limit = {1, 500000};
    setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    char byte;
    CHECK_EQUAL(recv(ends[0], &byte, 1, 0), -1);
    CHECK_EQUAL(errno, EAGAIN);
}

WAIT_MAIN
