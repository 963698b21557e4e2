// object: messages without bytes that wait in unix sockets, among others, and looked at already by the program
// status: captured
// note: refused where one of more than some 3,700 bytes waits as well, or descriptors, or one from a named socket that is not the peer
#include "object.h"
#include <sys/socket.h>
#include <sys/un.h>

static void put(int fd, const char *text) {
    CHECK(send(fd, text, strlen(text), 0) == (ssize_t)strlen(text));
}

static void expect(int fd, const char *text, const char *from) {
    char bytes[16];
    struct sockaddr_un name = {0};
    struct iovec part = {bytes, sizeof bytes};
    struct msghdr message = {.msg_name = &name, .msg_namelen = sizeof name, .msg_iov = &part, .msg_iovlen = 1};
    ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT);
    if (got != (ssize_t)strlen(text) || memcmp(bytes, text, got)) FAIL("%zd bytes, not \"%s\"", got, text);
    if (strcmp(name.sun_path, from)) FAIL("from %s, not %s", name.sun_path, from);
}

int main(void) {
    int packets[2], datagrams[2], over[2], server = socket(AF_UNIX, SOCK_DGRAM, 0), client = socket(AF_UNIX, SOCK_DGRAM, 0);
    int seen[2];
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "/tmp/server"};
    CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets) && !socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams));
    CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, over) && !socketpair(AF_UNIX, SOCK_DGRAM, 0, seen));
    CHECK(!bind(server, (void *)&name, sizeof name) && !connect(client, (void *)&name, sizeof name));
    int all[] = {packets[0], datagrams[0], client, over[0], seen[0]};
    for (int i = 0; i < 5; i++) put(all[i], ""), put(all[i], "one"), put(all[i], ""), put(all[i], ""), put(all[i], "two");
    put(packets[1], "");
    CHECK(!shutdown(over[0], SHUT_WR));
    // From then on the first is not shown to such a look any more.
    int offset = 0;
    char byte;
    CHECK(!setsockopt(seen[1], SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset) && recv(seen[1], &byte, 1, MSG_PEEK) == 0);
    ready();
    do {
        // Its own queue goes round.
        put(seen[1], "");
        put(seen[1], "x");
        expect(seen[0], "", "");
        expect(seen[0], "x", "");
    } while (go_on());
    int ends[] = {packets[1], datagrams[1], server, over[1], seen[1]};
    for (int i = 0; i < 5; i++) {
        const char *texts[] = {"", "one", "", "", "two"};
        for (int j = 0; j < 5; j++) expect(ends[i], texts[j], "");
    }
    expect(packets[0], "", "");
    CHECK(recv(packets[0], &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    CHECK(recv(over[1], &byte, 1, MSG_DONTWAIT) == 0);
    put(client, "after");
    expect(server, "after", "");
    PASS();
}
