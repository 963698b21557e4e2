// object: a connected UDP socket shut down for reading, or for writing
// status: captured
// note:
#include "object.h"

#include <arpa/inet.h>
#include <sys/socket.h>

int main(void) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}}, peer;
    int fd[2], value, count = 0;
    for (int i = 0; i < 2; i++) {
        fd[i] = socket(AF_INET, SOCK_DGRAM, 0);
        CHECK(bind(fd[i], (void *)&here, sizeof here) == 0);
    }
    for (int i = 0; i < 2; i++) {
        socklen_t length = sizeof peer;
        CHECK(getsockname(fd[1 - i], (void *)&peer, &length) == 0 && connect(fd[i], (void *)&peer, length) == 0);
    }
    CHECK(shutdown(fd[0], SHUT_RD) == 0 && shutdown(fd[1], SHUT_WR) == 0);
    ready();
    do {
        CHECK(send(fd[0], &count, 4, 0) == 4);
        CHECK_EQUAL(recv(fd[1], &value, 4, MSG_DONTWAIT), 4);
        CHECK_EQUAL(value, count);
        CHECK(send(fd[1], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
        // At its end, and not waiting.
        CHECK_EQUAL(recv(fd[0], &value, 4, 0), 0);
        count++;
    } while (go_on());
    PASS();
}
