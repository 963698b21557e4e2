// object: one listener, on which several processes wait in accept, with connections of a moment
// status: captured
// note:
#include "object.h"

#include <arpa/inet.h>
#include <sys/socket.h>

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof here;
    CHECK(listen(listener, 64) == 0 && getsockname(listener, (void *)&here, &length) == 0);
    for (int i = 0; i < 3; i++) {
        if (fork()) continue;
        for (;;) {
            int fd = accept(listener, 0, 0), value;
            CHECK(fd >= 0);
            CHECK(recv(fd, &value, 4, MSG_WAITALL) == 4);
            value = ~value;
            CHECK(send(fd, &value, 4, MSG_NOSIGNAL) == 4);
            close(fd);
        }
    }
    int count = 0, value;
    ready();
    do {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(connect(fd, (void *)&here, sizeof here) == 0);
        CHECK(send(fd, &count, 4, 0) == 4);
        CHECK_EQUAL(recv(fd, &value, 4, MSG_WAITALL), 4);
        CHECK_EQUAL(value, ~count);
        CHECK_EQUAL(recv(fd, &value, 4, 0), 0);
        close(fd);
        count++;
    } while (go_on());
    PASS();
}
