// object: a group of UDP sockets on one port (SO_REUSEPORT), each with what waits for it, held by processes
// status: captured
// note: which of the group gets a new sender's datagrams may change, as on any restart
#include "object.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/wait.h>

int main(void) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(6000), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd[4], on = 1, sent = 0, got = 0, used = 0;
    for (int i = 0; i < 4; i++) {
        fd[i] = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        CHECK(setsockopt(fd[i], SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0);
        CHECK(bind(fd[i], (void *)&here, sizeof here) == 0);
    }
    // A child holds them too and does nothing.
    if (fork() == 0) for (;;) pause();
    int out[16];
    for (int i = 0; i < 16; i++) out[i] = socket(AF_INET, SOCK_DGRAM, 0);
    ready();
    do {
        while (sent - got < 64) {
            CHECK_EQUAL(sendto(out[sent % 16], &sent, 4, 0, (void *)&here, sizeof here), 4);
            sent++;
        }
        for (int i = 0; i < 4; i++) {
            int value, last[16] = {0};
            for (int n = 0; n < 8 && recv(fd[i], &value, 4, 0) == 4; n++) {
                // Those of one sender are in order.
                CHECK(last[value % 16] <= value);
                last[value % 16] = value;
                got++, used |= 1 << i;
            }
        }
    } while (go_on());
    for (int i = 0, value; i < 4; i++)
        while (recv(fd[i], &value, 4, 0) == 4) got++;
    CHECK_EQUAL(got, sent);
    CHECK(used & (used - 1));
    PASS();
}
