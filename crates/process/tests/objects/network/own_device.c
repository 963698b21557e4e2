// object: network devices that the program makes, such as dummy, bridge, vlan or tunnel ones
// status: refused: of its own
// note: they would need their drivers and their places in others on both hosts; set addresses on `lo` instead of on a dummy device
#include "ip.h"
#include <fcntl.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>

int main(void) {
    // The module for dummy devices may not be there; a TAP device is, or no workload would have a network.
    struct ifreq request = {.ifr_name = "own%d", .ifr_flags = IFF_TAP | IFF_NO_PI};
    int tun = open("/dev/net/tun", O_RDWR);
    CHECK(tun >= 0);
    CHECK(!ioctl(tun, TUNSETIFF, &request));
    ready();
    while (go_on()) {}
    CHECK(!close(tun));
    PASS();
}
