// object: a TCP connection that its peer has reset, the error not read yet
// status: captured
// note: reported as ECONNRESET
#include "object.h"

#include <arpa/inet.h>
#include <sys/socket.h>

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof here;
    CHECK(listen(listener, 5) == 0 && getsockname(listener, (void *)&here, &length) == 0);
    CHECK(connect(client, (void *)&here, sizeof here) == 0);
    int server = accept(listener, 0, 0);
    struct linger now = {1, 0};
    CHECK(setsockopt(server, SOL_SOCKET, SO_LINGER, &now, sizeof now) == 0);
    close(server);
    ready();
    while (go_on()) {}
    char byte;
    CHECK(recv(client, &byte, 1, 0) == -1);
    CHECK_EQUAL(errno, ECONNRESET);
    CHECK_EQUAL(recv(client, &byte, 1, 0), 0);
    PASS();
}
