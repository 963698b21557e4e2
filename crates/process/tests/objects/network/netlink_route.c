// object: a netlink socket for routes that stays open between requests, bound, and one that was never used
// status: captured
// note: kept as soon as answers are read to their end; protocols route, sock_diag, audit and uevent
#include "object.h"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static char bytes[32768];

// All addresses; gives how many there are.
static int dump(int fd, unsigned sequence) {
    struct { struct nlmsghdr header; struct ifaddrmsg body; } ask = {
        {sizeof ask, RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0}, {.ifa_family = AF_UNSPEC}};
    CHECK(send(fd, &ask, sizeof ask, 0) == sizeof ask);
    for (int found = 0;;) {
        ssize_t got = recv(fd, bytes, sizeof bytes, 0);
        CHECK(got > 0);
        for (struct nlmsghdr *m = (void *)bytes; NLMSG_OK(m, got); m = NLMSG_NEXT(m, got)) {
            CHECK_EQUAL(m->nlmsg_seq, sequence);
            if (m->nlmsg_type == NLMSG_DONE) return found;
            CHECK_EQUAL(m->nlmsg_type, RTM_NEWADDR);
            found++;
        }
    }
}

int main(void) {
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), other = socket(AF_NETLINK, SOCK_DGRAM, NETLINK_ROUTE), on = 1;
    struct sockaddr_nl name = {.nl_family = AF_NETLINK, .nl_pid = 4711, .nl_groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR}, now;
    CHECK(bind(fd, (void *)&name, sizeof name) == 0);
    CHECK(setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on) == 0);
    unsigned sequence = 0;
    int wanted = dump(fd, ++sequence);
    CHECK(wanted > 0);
    ready();
    do CHECK_EQUAL(dump(fd, ++sequence), wanted);
    while (go_on());
    socklen_t length = sizeof now;
    CHECK(getsockname(fd, (void *)&now, &length) == 0);
    CHECK_EQUAL(now.nl_pid, 4711);
    CHECK_EQUAL(now.nl_groups, name.nl_groups);
    length = sizeof on;
    CHECK(getsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, &length) == 0 && on == 1);
    CHECK_EQUAL(dump(other, 1), wanted);
    // It still hears of changes.
    struct ifreq request = {.ifr_name = "lo", .ifr_mtu = 60000};
    CHECK(ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCSIFMTU, &request) == 0);
    CHECK(recv(fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0);
    CHECK_EQUAL(((struct nlmsghdr *)bytes)->nlmsg_type, RTM_NEWLINK);
    PASS();
}
