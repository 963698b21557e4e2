// object: a link that the program has changed: MTU, queue length, alias, all multicast, no ARP
// status: captured
// note: another MAC address, a BPF program on it, or traffic control: refused
#include "ip.h"

static const char *list(void) { return ip_output("-o link show | sed 's/@.*: /: /; s/ link.netnsid .*//; s/ state .*//'"); }

int main(void) {
    const char *device = ip_device();
    ip("link set %s mtu 1400", device);
    ip("link set %s txqueuelen 333", device);
    ip("link set %s alias of-its-own", device);
    ip("link set %s allmulticast on", device);
    ip("link set lo mtu 16384");
    ip("link set lo arp off");
    const char *before = list();
    ready();
    while (go_on()) {}
    ip_same("links", before, list());
    CHECK(strstr(ip_output("link show %s", device), "alias of-its-own"));
    PASS();
}
