// object: TCP urgent data (MSG_OOB) that was not read
// status: refused: urgent
// note: kept as soon as the program has read it
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
    CHECK(send(client, "u", 1, MSG_OOB) == 1);
    ready();
    while (go_on()) {}
    char byte;
    CHECK(recv(server, &byte, 1, MSG_OOB) == 1 && byte == 'u');
    PASS();
}
