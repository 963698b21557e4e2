// object: unix stream between two processes, with content on its way in both directions
// status: captured
#include "object.h"
#include <sys/socket.h>

int main(void) {
    int pair[2];
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    if (!fork()) {
        uint32_t value;
        close(pair[0]);
        while (recv(pair[1], &value, 4, MSG_WAITALL) == 4) {
            value *= 3;
            if (send(pair[1], &value, 4, 0) != 4) _exit(1);
        }
        _exit(0);
    }
    close(pair[1]);
    ready();
    uint32_t sent = 0, got = 0, value;
    do {
        while (sent - got < 50) {
            CHECK(send(pair[0], &sent, 4, 0) == 4);
            sent++;
        }
        for (int i = 0; i < 20; i++, got++) {
            CHECK(recv(pair[0], &value, 4, MSG_WAITALL) == 4);
            CHECK_EQUAL(value, got * 3);
        }
    } while (go_on());
    shutdown(pair[0], SHUT_WR);
    for (; got < sent; got++) CHECK(recv(pair[0], &value, 4, MSG_WAITALL) == 4 && value == got * 3);
    CHECK(recv(pair[0], &value, 4, 0) == 0);
    PASS();
}
