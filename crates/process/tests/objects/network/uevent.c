// object: a netlink socket for events of devices (NETLINK_KOBJECT_UEVENT), in its groups, watched by epoll
// status: captured
// note: events between the last checkpoint and a takeover are the old host's, and not told
#include "object.h"

#include <linux/netlink.h>
#include <sys/epoll.h>
#include <sys/socket.h>

int main(void) {
    int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT), on = 1, set = epoll_create1(0);
    struct sockaddr_nl name = {.nl_family = AF_NETLINK, .nl_groups = 1}, before, now;
    CHECK(bind(fd, (void *)&name, sizeof name) == 0);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    struct epoll_event event = {.events = EPOLLIN};
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) == 0);
    socklen_t length = sizeof before;
    CHECK(getsockname(fd, (void *)&before, &length) == 0);
    ready();
    char bytes[8192];
    do {
        if (epoll_wait(set, &event, 1, 1) == 1) while (recv(fd, bytes, sizeof bytes, 0) > 0) {}
    } while (go_on());
    CHECK(getsockname(fd, (void *)&now, &length) == 0 && memcmp(&before, &now, sizeof now) == 0);
    length = sizeof on;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, &length) == 0 && on == 1);
    PASS();
}
