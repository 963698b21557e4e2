// object: a corked TCP connection (TCP_CORK) with data held back
// status: captured
// note:
#include "object.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0), on = 1, off = 0;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof here;
    CHECK(listen(listener, 5) == 0 && getsockname(listener, (void *)&here, &length) == 0);
    CHECK(connect(client, (void *)&here, sizeof here) == 0);
    int server = accept(listener, 0, 0);
    unsigned sent = 0, got = 0, value;
    CHECK(setsockopt(client, IPPROTO_TCP, TCP_CORK, &on, sizeof on) == 0);
    ready();
    do {
        for (int i = 0; i < 3; i++, sent++) CHECK(send(client, &sent, 4, 0) == 4);
        if (sent % 60 == 0) {
            CHECK(setsockopt(client, IPPROTO_TCP, TCP_CORK, &off, sizeof off) == 0);
            for (; got < sent; got++) CHECK(recv(server, &value, 4, 0) == 4 && value == got);
            CHECK(setsockopt(client, IPPROTO_TCP, TCP_CORK, &on, sizeof on) == 0);
        }
    } while (go_on());
    length = sizeof on;
    CHECK(getsockopt(client, IPPROTO_TCP, TCP_CORK, &on, &length) == 0 && on == 1);
    CHECK(setsockopt(client, IPPROTO_TCP, TCP_CORK, &off, sizeof off) == 0);
    for (; got < sent; got++) CHECK(recv(server, &value, 4, 0) == 4 && value == got);
    PASS();
}
