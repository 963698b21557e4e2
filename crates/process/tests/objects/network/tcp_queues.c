// object: TCP over the loopback, with data waiting in both directions
// status: captured
// note:
#include "object.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

static unsigned sent[2], got[2];

static void move(int fd[2], int from, unsigned up_to, unsigned down_to) {
    unsigned char bytes[512];
    while (sent[from] - got[from] < up_to) {
        for (unsigned i = 0; i < sizeof bytes; i++) bytes[i] = (sent[from] + i) * 7 >> 3;
        CHECK_EQUAL(send(fd[from], bytes, sizeof bytes, MSG_DONTWAIT), sizeof bytes);
        sent[from] += sizeof bytes;
    }
    while (sent[from] - got[from] > down_to) {
        // It may still be on its way.
        ssize_t count = recv(fd[1 - from], bytes, 333, 0);
        CHECK(count > 0);
        for (int i = 0; i < count; i++) CHECK_EQUAL(bytes[i], (unsigned char)((got[from] + i) * 7 >> 3));
        got[from] += count;
    }
}

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), fd[2] = {socket(AF_INET, SOCK_STREAM, 0)};
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof here;
    CHECK(listen(listener, 5) == 0 && getsockname(listener, (void *)&here, &length) == 0);
    CHECK(connect(fd[0], (void *)&here, sizeof here) == 0 && (fd[1] = accept(listener, 0, 0)) >= 0);
    ready();
    do move(fd, 0, 20000, 8000), move(fd, 1, 9000, 100);
    while (go_on());
    move(fd, 0, 0, 0), move(fd, 1, 0, 0);
    PASS();
}
