// object: a connected UDP socket whose peer has refused, not told yet
// status: captured
// note: ECONNREFUSED; another error, or an error queue (IP_RECVERR), is kept once it was read
#include "object.h"

#include <arpa/inet.h>
#include <sys/socket.h>

int main(void) {
    // Nobody is there.
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int client = socket(AF_INET, SOCK_DGRAM, 0), six = socket(AF_INET6, SOCK_DGRAM, 0);
    struct sockaddr_in6 server6 = {.sin6_family = AF_INET6, .sin6_port = htons(9), .sin6_addr = in6addr_loopback};
    CHECK(connect(client, (void *)&server, sizeof server) == 0);
    CHECK(connect(six, (void *)&server6, sizeof server6) == 0);
    CHECK(send(client, "x", 1, 0) == 1 && send(six, "x", 1, 0) == 1);
    ready();
    while (go_on()) {}
    char byte;
    CHECK(recv(client, &byte, 1, MSG_DONTWAIT) == -1);
    CHECK_EQUAL(errno, ECONNREFUSED);
    CHECK(recv(six, &byte, 1, MSG_DONTWAIT) == -1);
    CHECK_EQUAL(errno, ECONNREFUSED);
    CHECK(recv(client, &byte, 1, MSG_DONTWAIT) == -1);
    CHECK_EQUAL(errno, EAGAIN);
    PASS();
}
