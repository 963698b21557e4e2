// object: SO_PEEK_OFF of a UDP socket with datagrams waiting
// status: captured
// note:
#include "object.h"

#include <arpa/inet.h>
#include <sys/socket.h>

int main(void) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int to = socket(AF_INET, SOCK_DGRAM, 0), from = socket(AF_INET, SOCK_DGRAM, 0), offset = 0;
    socklen_t length = sizeof here;
    CHECK(bind(to, (void *)&here, sizeof here) == 0 && getsockname(to, (void *)&here, &length) == 0);
    CHECK(setsockopt(to, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset) == 0);
    unsigned count = 0, value;
    for (unsigned i = 0; i < 3; i++) CHECK(sendto(from, &i, 4, 0, (void *)&here, sizeof here) == 4);
    // Looked at the first; the next look is at the second.
    CHECK_EQUAL(recv(to, &value, 4, MSG_PEEK | MSG_DONTWAIT), 4);
    ready();
    do {
        length = sizeof offset;
        CHECK(getsockopt(to, SOL_SOCKET, SO_PEEK_OFF, &offset, &length) == 0);
        CHECK_EQUAL(offset, 4);
        CHECK_EQUAL(recv(to, &value, 4, MSG_PEEK | MSG_DONTWAIT), 4);
        CHECK_EQUAL(value, count + 1);
        CHECK_EQUAL(recv(to, &value, 4, MSG_DONTWAIT), 4);
        CHECK_EQUAL(value, count);
        value = count++ + 3;
        CHECK(sendto(from, &value, 4, 0, (void *)&here, sizeof here) == 4);
    } while (go_on());
    PASS();
}
