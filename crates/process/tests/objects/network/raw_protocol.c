// object: raw sockets of a protocol of their own, bound to addresses, IPv4 and IPv6, and one that writes its own headers
// status: captured
// note:
#include "object.h"

#include <arpa/inet.h>
#include <netinet/ip.h>
#include <sys/socket.h>

int main(void) {
    int four = socket(AF_INET, SOCK_RAW, 253), six = socket(AF_INET6, SOCK_RAW, 253), own = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK + 3)}}, name;
    struct sockaddr_in6 at6 = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    CHECK(bind(four, (void *)&at, sizeof at) == 0 && bind(six, (void *)&at6, sizeof at6) == 0);
    unsigned count = 0;
    struct { struct iphdr ip; unsigned value; } packet = {
        {.ihl = 5, .version = 4, .ttl = 5, .protocol = 253, .saddr = htonl(0x01020304), .daddr = at.sin_addr.s_addr}}, got;
    ready();
    do {
        packet.value = count;
        CHECK(sendto(own, &packet, sizeof packet, 0, (void *)&at, sizeof at) == sizeof packet);
        CHECK_EQUAL(recv(four, &got, sizeof got, 0), sizeof got);
        CHECK(got.value == count && got.ip.saddr == packet.ip.saddr);
        CHECK(sendto(six, &count, 4, 0, (void *)&at6, sizeof at6) == 4);
        unsigned value = 0;
        CHECK_EQUAL(recv(six, &value, 4, 0), 4);
        CHECK_EQUAL(value, count);
        count++;
    } while (go_on());
    socklen_t length = sizeof name;
    CHECK(getsockname(four, (void *)&name, &length) == 0 && name.sin_addr.s_addr == at.sin_addr.s_addr);
    PASS();
}
