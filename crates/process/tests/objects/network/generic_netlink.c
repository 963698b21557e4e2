// object: generic netlink, and what a network device can be asked and told (`SIOCETHTOOL`)
// status: hidden
// note: as on a kernel that was built without it: state of many kinds is set by it (IPVS, offloads, statistics of TCP) that nothing lists. `ip` and `ethtool` say that there is none
#include "object.h"
#include <linux/ethtool.h>
#include <linux/netlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

int main(void) {
    int probe = socket(AF_INET, SOCK_DGRAM, 0);
    struct ethtool_value value = {.cmd = ETHTOOL_SGSO};
    struct ifreq request = {.ifr_name = "lo", .ifr_data = (void *)&value};
    CHECK(probe >= 0);
    ready();
    while (go_on()) {
        CHECK(socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC) == -1);
        CHECK_EQUAL(errno, EPROTONOSUPPORT);
        CHECK(ioctl(probe, SIOCETHTOOL, &request) == -1);
        CHECK_EQUAL(errno, EOPNOTSUPP);
    }
    PASS();
}
