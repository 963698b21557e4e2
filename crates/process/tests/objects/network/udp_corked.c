// object: a UDP datagram that is being put together (MSG_MORE, UDP_CORK)
// status: refused: put together
// note: kept as soon as it is sent
#include "object.h"

#include <arpa/inet.h>
#include <sys/socket.h>

int main(void) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int to = socket(AF_INET, SOCK_DGRAM, 0), from = socket(AF_INET, SOCK_DGRAM, 0);
    socklen_t length = sizeof here;
    CHECK(bind(to, (void *)&here, sizeof here) == 0 && getsockname(to, (void *)&here, &length) == 0);
    CHECK(connect(from, (void *)&here, sizeof here) == 0);
    int size = 0;
    CHECK(send(from, "x", 1, MSG_MORE) == 1);
    ready();
    do {
        CHECK(send(from, "x", 1, MSG_MORE) == 1);
        size++;
    } while (go_on());
    CHECK(send(from, "y", 1, 0) == 1);
    char bytes[65000];
    CHECK_EQUAL(recv(to, bytes, sizeof bytes, 0), size + 2);
    PASS();
}
