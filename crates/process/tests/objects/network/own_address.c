// object: addresses that the program gives its interface and its loopback, or takes away, IPv4 and IPv6, among them secondary, deprecated, point-to-point and labelled ones
// status: captured
// note: the others of its network hear of them at a takeover like of those of `--ip`. IPv6 ones are usable at once, without asking for duplicates. With a limited lifetime: refused
#include "ip.h"
#include <arpa/inet.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static const char *list(void) {
    return ip_output("-4 -o addr show; " IP "-6 -o addr show scope global | sort");
}

// Sends a datagram from one own address to another, and reads it.
static void talk(int family, const char *address) {
    struct sockaddr_storage at = {.ss_family = family};
    socklen_t length = sizeof at;
    char byte = 0;
    void *place = family == AF_INET ? (void *)&((struct sockaddr_in *)&at)->sin_addr
                                    : (void *)&((struct sockaddr_in6 *)&at)->sin6_addr;
    CHECK(inet_pton(family, address, place) == 1);
    int one = socket(family, SOCK_DGRAM, 0), other = socket(family, SOCK_DGRAM, 0);
    CHECK(one >= 0 && other >= 0);
    if (bind(one, (struct sockaddr *)&at, sizeof at)) FAIL("bind to %s", address);
    CHECK(!getsockname(one, (struct sockaddr *)&at, &length));
    CHECK(sendto(other, "x", 1, 0, (struct sockaddr *)&at, length) == 1);
    CHECK(recv(one, &byte, 1, 0) == 1 && byte == 'x');
    close(one);
    close(other);
}

int main(void) {
    const char *device = ip_device();
    // As old programs do it.
    struct ifreq request = {.ifr_name = "lo:1"};
    struct sockaddr_in *address = (struct sockaddr_in *)&request.ifr_addr;
    int socket_of_any_kind = socket(AF_INET, SOCK_DGRAM, 0);
    address->sin_family = AF_INET;
    CHECK(inet_pton(AF_INET, "10.11.12.13", &address->sin_addr) == 1);
    CHECK(!ioctl(socket_of_any_kind, SIOCSIFADDR, &request));

    ip("addr add 198.51.100.9/24 dev %s", device);
    ip("addr add 198.51.100.8/24 dev %s label %s:two", device, device);
    ip("addr add 198.51.100.20/32 peer 198.51.100.21/32 dev %s preferred_lft 0", device);
    ip("addr add 198.51.100.77/32 dev %s noprefixroute scope 50 metric 7", device);
    // The first goes and comes back, and is the last then.
    ip("addr add 203.0.113.1/24 dev %s", device);
    ip("addr add 203.0.113.2/24 dev %s", device);
    ip("addr del 203.0.113.1/24 dev %s", device);
    ip("addr replace 203.0.113.2/24 dev %s", device);
    ip("addr add 203.0.113.1/24 dev %s", device);
    ip("addr add 127.7.7.7/8 dev lo");
    ip("-6 addr add 2001:db8:7::7/128 dev lo");
    ip("-6 addr add 2001:db8:7::8/64 dev lo nodad");
    ip_own("local 2001:db8:7::7 ");
    ip_own("local 2001:db8:7::8 ");
    const char *before = list();
    int bound = socket(AF_INET6, SOCK_DGRAM, 0);
    struct sockaddr_in6 own = {.sin6_family = AF_INET6};
    CHECK(inet_pton(AF_INET6, "2001:db8:7::7", &own.sin6_addr) == 1);
    CHECK(!bind(bound, (struct sockaddr *)&own, sizeof own));
    ready();
    do {
        talk(AF_INET, "10.11.12.13");
        talk(AF_INET, "198.51.100.8");
        talk(AF_INET, "198.51.100.77");
        talk(AF_INET, "127.7.7.7");
        talk(AF_INET6, "2001:db8:7::7");
        talk(AF_INET6, "2001:db8:7::8");
    } while (go_on());
    ip_same("addresses", before, list());
    ip("addr del 198.51.100.8/24 dev %s", device);
    CHECK(!strstr(list(), "198.51.100.8"));
    PASS();
}
