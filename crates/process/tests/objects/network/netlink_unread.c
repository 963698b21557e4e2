// object: a netlink socket with an answer that was not read
// status: refused: netlink
// note: kept as soon as the program has read it
#include "object.h"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

int main(void) {
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    struct { struct nlmsghdr header; struct rtgenmsg body; } ask = {
        {sizeof ask, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0}, {AF_UNSPEC}};
    CHECK(send(fd, &ask, sizeof ask, 0) == sizeof ask);
    ready();
    while (go_on()) {}
    char bytes[32768];
    CHECK(recv(fd, bytes, sizeof bytes, 0) > 0);
    PASS();
}
