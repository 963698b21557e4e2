// object: connected UDP sockets, their ports chosen by the kernel; connected elsewhere later
// status: captured
// note:
#include "object.h"

#include <arpa/inet.h>
#include <sys/socket.h>

int main(void) {
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}}, mine, peer, now;
    int listener = socket(AF_INET, SOCK_DGRAM, 0), client = socket(AF_INET, SOCK_DGRAM, 0);
    socklen_t length = sizeof server;
    CHECK(bind(listener, (void *)&server, sizeof server) == 0);
    CHECK(getsockname(listener, (void *)&server, &length) == 0);
    CHECK(connect(client, (void *)&server, sizeof server) == 0);
    length = sizeof mine;
    CHECK(getsockname(client, (void *)&mine, &length) == 0);
    unsigned count = 0, value;
    CHECK(send(client, &count, 4, 0) == 4);
    ready();
    do {
        length = sizeof peer;
        CHECK_EQUAL(recvfrom(listener, &value, 4, MSG_DONTWAIT, (void *)&peer, &length), 4);
        CHECK_EQUAL(value, count);
        CHECK(memcmp(&peer, &mine, sizeof peer) == 0);
        value = ~value;
        CHECK(sendto(listener, &value, 4, 0, (void *)&peer, length) == 4);
        // A stranger's is not for a connected socket.
        int stranger = socket(AF_INET, SOCK_DGRAM, 0);
        CHECK(sendto(stranger, "x", 1, 0, (void *)&mine, sizeof mine) == 1);
        close(stranger);
        if (!go_on()) break;
        CHECK_EQUAL(recv(client, &value, 4, MSG_DONTWAIT), 4);
        CHECK_EQUAL(value, ~count);
        CHECK(recv(client, &value, 4, MSG_DONTWAIT) == -1 && errno == EAGAIN);
        count++;
        CHECK(send(client, &count, 4, 0) == 4);
    } while (go_on());
    length = sizeof peer;
    CHECK(getpeername(client, (void *)&peer, &length) == 0 && memcmp(&peer, &server, sizeof peer) == 0);
    length = sizeof now;
    CHECK(getsockname(client, (void *)&now, &length) == 0 && memcmp(&now, &mine, sizeof now) == 0);
    // Address and port were the kernel's choice, so they are given back.
    struct sockaddr nobody = {.sa_family = AF_UNSPEC};
    CHECK(connect(client, &nobody, sizeof nobody) == 0 && getsockname(client, (void *)&now, &length) == 0);
    CHECK_EQUAL(now.sin_addr.s_addr, 0);
    CHECK_EQUAL(now.sin_port, 0);
    PASS();
}
