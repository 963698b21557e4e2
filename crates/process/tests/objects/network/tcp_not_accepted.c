// object: connections of the workload to itself that were not accepted yet
// status: refused: not accepted
// note: passes when they are accepted. Those of other hosts are kept: no program here shows them
#include "object.h"

#include <arpa/inet.h>
#include <sys/socket.h>

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof here;
    CHECK(listen(listener, 5) == 0 && getsockname(listener, (void *)&here, &length) == 0);
    CHECK(connect(client, (void *)&here, sizeof here) == 0);
    CHECK(send(client, "x", 1, 0) == 1);
    ready();
    while (go_on()) {}
    char byte;
    int server = accept(listener, 0, 0);
    CHECK(server >= 0 && recv(server, &byte, 1, 0) == 1 && byte == 'x');
    PASS();
}
