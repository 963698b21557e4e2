// object: descriptors that stay in flight in a unix socket
// status: refused: descriptors in flight
// note: kept as soon as they are received
#include "object.h"
#include <sys/socket.h>

int main(void) {
    int pair[2], fd = 1;
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    union { char raw[CMSG_SPACE(4)]; struct cmsghdr align; } control = {0};
    struct iovec part = {"f", 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = CMSG_LEN(4)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(4)};
    memcpy(CMSG_DATA(header), &fd, 4);
    CHECK(sendmsg(pair[0], &message, 0) == 1);
    ready();
    while (go_on()) {}
    PASS();
}
