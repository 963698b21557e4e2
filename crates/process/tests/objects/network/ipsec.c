// object: IPsec: the key management sockets (`NETLINK_XFRM`, `AF_KEY`), and a policy of a socket's own
// status: hidden
// note: as on a kernel that was built without it; let the hosts encrypt what they forward
#include "object.h"
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sys/socket.h>

#define ABSENT(call, number) \
    do { \
        CHECK((call) == -1); \
        CHECK_EQUAL(errno, number); \
    } while (0)

int main(void) {
    int probe = socket(AF_INET, SOCK_DGRAM, 0);
    char policy[168] = {0};
    CHECK(probe >= 0);
    ready();
    while (go_on()) {
        ABSENT(socket(AF_NETLINK, SOCK_RAW, NETLINK_XFRM), EPROTONOSUPPORT);
        ABSENT(socket(AF_KEY, SOCK_RAW, 2), EAFNOSUPPORT);
        ABSENT(setsockopt(probe, SOL_IP, IP_XFRM_POLICY, policy, sizeof policy), ENOPROTOOPT);
    }
    PASS();
}
