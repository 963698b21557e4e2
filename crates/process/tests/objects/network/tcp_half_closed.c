// object: TCP connections closed in one direction, with data on its way in the other and before the end
// status: captured
// note: FIN_WAIT2 and CLOSE_WAIT
#include "object.h"

#include <arpa/inet.h>
#include <sys/socket.h>

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), fd[2] = {socket(AF_INET, SOCK_STREAM, 0)}, value;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof here;
    CHECK(listen(listener, 5) == 0 && getsockname(listener, (void *)&here, &length) == 0);
    CHECK(connect(fd[0], (void *)&here, sizeof here) == 0 && (fd[1] = accept(listener, 0, 0)) >= 0);
    for (int i = 0; i < 1000; i++) CHECK(send(fd[0], &i, 4, 0) == 4);
    CHECK(shutdown(fd[0], SHUT_WR) == 0);
    int sent = 0, got = 0, first = 0;
    ready();
    do {
        // What was said before the end is read slowly, while the other direction goes on.
        if (first < 1000) {
            CHECK_EQUAL(recv(fd[1], &value, 4, MSG_DONTWAIT), 4);
            CHECK_EQUAL(value, first++);
        }
        for (; sent - got < 50; sent++) CHECK(send(fd[1], &sent, 4, 0) == 4);
        while (sent - got > 20) {
            CHECK_EQUAL(recv(fd[0], &value, 4, 0), 4);
            CHECK_EQUAL(value, got++);
        }
        CHECK(send(fd[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
    } while (go_on());
    for (; first < 1000; first++) CHECK(recv(fd[1], &value, 4, 0) == 4 && value == first);
    CHECK_EQUAL(recv(fd[1], &value, 4, 0), 0);
    PASS();
}
