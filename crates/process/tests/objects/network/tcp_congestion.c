// object: TCP with a congestion control chosen by the program (TCP_CONGESTION)
// status: captured
// note: reno is the default in a workload; others are those that the host allows
#include "object.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof here;
    CHECK(setsockopt(client, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5) == 0);
    CHECK(listen(listener, 5) == 0 && getsockname(listener, (void *)&here, &length) == 0);
    CHECK(connect(client, (void *)&here, sizeof here) == 0);
    int server = accept(listener, 0, 0), round = 0, value;
    ready();
    do {
        if (round++ == 5) CHECK(setsockopt(server, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5) == 0);
        CHECK(send(client, &round, 4, 0) == 4 && recv(server, &value, 4, 0) == 4 && value == round);
    } while (go_on());
    for (int i = 0; i < 2; i++) {
        char name[16] = {0};
        length = sizeof name;
        CHECK(getsockopt(i ? server : client, IPPROTO_TCP, TCP_CONGESTION, name, &length) == 0);
        CHECK(strcmp(name, "cubic") == 0);
    }
    PASS();
}
