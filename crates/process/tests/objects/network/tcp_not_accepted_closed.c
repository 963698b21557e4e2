// object: connections of the workload to itself that were not accepted yet, and that their clients have closed
// status: refused: not accepted
// note: passes when they are accepted
#include "object.h"

#include <arpa/inet.h>
#include <sys/socket.h>

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    // One that is half-closed before it is closed has nothing left to say.
    int other = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof here;
    CHECK(listen(listener, 5) == 0 && getsockname(listener, (void *)&here, &length) == 0);
    CHECK(connect(client, (void *)&here, sizeof here) == 0);
    CHECK(send(client, "x", 1, 0) == 1);
    CHECK(connect(other, (void *)&here, sizeof here) == 0);
    CHECK(send(other, "y", 1, 0) == 1);
    CHECK(shutdown(other, SHUT_WR) == 0);
    ready();
    close(client);
    close(other);
    while (go_on()) {}
    for (int round = 0; round < 2; round++) {
        char byte;
        int server = accept(listener, 0, 0);
        CHECK(server >= 0 && recv(server, &byte, 1, 0) == 1 && byte == "xy"[round]);
        CHECK(recv(server, &byte, 1, 0) == 0);
    }
    PASS();
}
