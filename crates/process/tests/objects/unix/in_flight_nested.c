// object: unix and TCP sockets in flight, with what waits in them, and descriptors in flight in sockets in flight
// status: captured
// note: one before the other, up to 16; refused where they are in each other's queues
#include "unix/rights.h"
#include <arpa/inet.h>
#include <netinet/in.h>

int main(void) {
    int outer[2], middle[2], inner[2], ends[2], around[2];
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, outer) && !socketpair(AF_UNIX, SOCK_SEQPACKET, 0, middle));
    CHECK(!socketpair(AF_UNIX, SOCK_DGRAM, 0, inner) && !pipe(ends) && !socketpair(AF_UNIX, SOCK_STREAM, 0, around));
    // A pipe's end in an end of a pair, that in one of another, that in one of a third, of which all are elsewhere gone.
    give(inner[0], "inner", 5, &ends[1], 1, 0);
    give(middle[0], "middle", 6, &inner[1], 1, 0);
    CHECK(send(middle[1], "back", 4, 0) == 4);
    int both[] = {middle[1], middle[0]};
    give(outer[0], "outer", 5, both, 2, 0);
    close(ends[1]), close(inner[1]), close(middle[0]), close(middle[1]);
    // A connection, as a server hands it to a process that serves.
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof name;
    int server = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(!bind(server, (void *)&name, sizeof name) && !listen(server, 1) && !getsockname(server, (void *)&name, &length));
    CHECK(!connect(client, (void *)&name, sizeof name));
    int accepted = accept(server, 0, 0), from;
    CHECK(accepted >= 0 && send(client, "request", 7, 0) == 7 && send(accepted, "greeting", 8, 0) == 8);
    give(around[0], "serve", 5, &accepted, 1, 0);
    close(accepted);
    ready();
    char text[16];
    int fds[MOST];
    do {
        // Datagrams of who is still there reach the socket that is not.
        CHECK(recv(client, text, 8, MSG_PEEK) == 8 && !memcmp(text, "greeting", 8));
    } while (go_on());
    CHECK(send(inner[0], "more", 4, 0) == 4);
    CHECK(take(outer[1], "outer", 5, fds, 0) == 2);
    int middle_back = fds[0], middle_there = fds[1];
    CHECK(recv(middle_there, text, 16, MSG_DONTWAIT) == 4 && !memcmp(text, "back", 4));
    CHECK(take(middle_back, "middle", 6, fds, 0) == 1);
    int inner_end = fds[0];
    CHECK(take(inner_end, "inner", 5, fds, 0) == 1);
    CHECK(recv(inner_end, text, 16, MSG_DONTWAIT) == 4 && !memcmp(text, "more", 4));
    CHECK(write(fds[0], "end", 3) == 3);
    close(fds[0]);
    CHECK(read(ends[0], text, 16) == 3 && read(ends[0], text, 16) == 0);
    CHECK(take(around[1], "serve", 5, &from, 0) == 1);
    CHECK(recv(from, text, 16, 0) == 7 && !memcmp(text, "request", 7) && send(from, "answer", 6, 0) == 6);
    CHECK(recv(client, text, 8, MSG_WAITALL) == 8 && recv(client, text, 6, MSG_WAITALL) == 6 && !memcmp(text, "answer", 6));
    close(from);
    CHECK(recv(client, text, 6, 0) == 0);
    PASS();
}
