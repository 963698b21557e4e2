// object: `accept` on a socket with SO_RCVTIMEO
// status: captured
// note: goes on with what is left, counted from the first stop that found it waiting: late by up to the length of an epoch, never early
#include "calls/wait.h"
#include <netinet/in.h>
#include <sys/socket.h>

static void wait_once(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(!bind(listener, (void *)&address, sizeof address) && !listen(listener, 5));
    struct timeval limit = {1, 500000};
    setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    CHECK_EQUAL(accept(listener, 0, 0), -1);
    CHECK_EQUAL(errno, EAGAIN);
}

WAIT_MAIN
