// object: next hop objects of the program's own (`ip nexthop`), routes by them and by groups of them, and some that no route uses
// status: captured
// note: resilient groups are refused
#include "ip.h"

static const char *list(void) {
    return ip_output("nexthop show | sort; " IP "-d route show table all | grep nhid | sort; " IP
                     "-6 -d route show table all | grep nhid | sort");
}

int main(void) {
    const char *device = ip_device();
    ip("addr add 198.51.100.9/24 dev %s", device);
    ip("nexthop add id 5 via 198.51.100.7 dev %s proto static", device);
    ip("nexthop add id 6 via 198.51.100.8 dev %s onlink", device);
    ip("nexthop add id 3 group 5/6,3");
    ip("nexthop add id 9 blackhole");
    ip("nexthop add id 12 dev %s", device);
    if (ip_has_v6(device)) {
        ip("-6 addr add 2001:db8:5::9/64 dev %s", device);
        ip("-6 nexthop add id 20 via 2001:db8:5::1 dev %s", device);
    } else {
        ip("-6 nexthop add id 20 dev lo");
    }
    ip("route add 192.0.2.0/25 nhid 5");
    ip("route add 192.0.2.128/25 nhid 3 metric 7");
    ip("route add 10.99.0.0/16 nhid 9");
    ip("-6 route add 2001:db8:6::/64 nhid 20");
    const char *before = list();
    CHECK(strstr(before, "192.0.2.128/25 nhid 3") && strstr(before, "group 5/6,3") && strstr(before, "id 12"));
    CHECK(strstr(before, "2001:db8:6::/64 nhid 20"));
    ready();
    while (go_on()) {
        ip("nexthop replace id 12 via 198.51.100.77 dev %s", device);
        ip("nexthop replace id 12 dev %s", device);
    }
    ip_same("next hops", before, list());
    ip("nexthop del id 9");
    CHECK(!strstr(list(), "10.99.0.0/16"));
    PASS();
}
