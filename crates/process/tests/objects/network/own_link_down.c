// object: a loopback that the program has brought down, and up again with less than it had
// status: captured
// note:
#include "ip.h"
#include <arpa/inet.h>
#include <sys/socket.h>

int main(void) {
    ip("link set lo down");
    ip("-6 addr flush dev lo");
    ip("link set lo up");
    ip("addr del 127.0.0.1/8 dev lo");
    ip("addr add 127.0.0.2/32 dev lo");
    ip("link set lo down");
    const char *before = ip_output("-o addr show dev lo");
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(9)};
    CHECK(inet_pton(AF_INET, "127.0.0.1", &at.sin_addr) == 1);
    ready();
    do {
        int probe = socket(AF_INET, SOCK_DGRAM, 0);
        CHECK(bind(probe, (struct sockaddr *)&at, sizeof at) < 0);
        close(probe);
    } while (go_on());
    ip_same("addresses", before, ip_output("-o addr show dev lo"));
    ip("link set lo up");
    PASS();
}
