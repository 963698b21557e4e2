// object: routes of the program's own: by gateways, blackholes, local networks, several hops, metrics, sources, other tables; and one of the kernel's that it has removed
// status: captured
// note: those that expire are refused
#include "ip.h"
#include <arpa/inet.h>
#include <sys/socket.h>

static const char *list(void) {
    return ip_output("-d route show table all | grep -v fe80 | grep -v ' proto kernel' | sort; " IP
                     "-6 -d route show table all | grep -v -e fe80 -e ff00 -e ' proto kernel' | sort");
}

// Whether there is a way.
static int reaches(const char *to) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(9)};
    CHECK(inet_pton(AF_INET, to, &at.sin_addr) == 1);
    int probe = socket(AF_INET, SOCK_DGRAM, 0), connected = !connect(probe, (struct sockaddr *)&at, sizeof at);
    close(probe);
    return connected;
}

int main(void) {
    const char *device = ip_device();
    ip("addr add 198.51.100.9/24 dev %s", device);
    ip("addr add 203.0.113.5/24 dev %s", device);
    ip("route del 203.0.113.0/24 dev %s", device);
    ip("route add 192.0.2.0/25 via 198.51.100.7 dev %s metric 30 src 198.51.100.9 mtu 1300 advmss 1200", device);
    ip("route add 192.0.2.0/25 via 198.51.100.6 dev %s metric 40", device);
    ip("route append 192.0.2.0/25 via 198.51.100.5 dev %s metric 40", device);
    ip("route add 192.0.2.128/25 nexthop via 198.51.100.7 dev %s weight 3 nexthop via 198.51.100.8 dev %s onlink", device,
       device);
    ip("route add blackhole 10.99.0.0/16");
    ip("route add prohibit 10.98.0.0/16 metric 5");
    ip("route add local 10.97.0.0/16 dev lo");
    ip("route add 10.96.0.0/16 via 198.51.100.3 dev %s table 4711 proto static", device);
    ip("route add default via 198.51.100.1 dev %s table 90 tos 0x10", device);
    ip("-6 route add 2001:db8:7::/64 dev lo");
    ip("-6 route add unreachable 2001:db8:8::/64 metric 99");
    ip("-6 route add local 2001:db8:9::/64 dev lo table 77");
    const char *before = list();
    CHECK(strstr(before, "10.96.0.0/16") && strstr(before, "2001:db8:9::/64") && strstr(before, "weight 3"));
    ready();
    do {
        CHECK(reaches("192.0.2.1") && reaches("192.0.2.200") && reaches("10.97.1.2"));
        CHECK(!reaches("10.99.1.2") && !reaches("10.98.1.2") && !reaches("203.0.113.77"));
    } while (go_on());
    ip_same("routes", before, list());
    ip("route del 192.0.2.0/25 metric 30");
    PASS();
}
