// object: sockets that take no descriptors (SO_PASSRIGHTS), also with one that came before they were told so
// status: captured
// note: of kernels that have it (Linux 6.16)
#include "rights.h"
#include <fcntl.h>

#define SO_PASSRIGHTS 83

int main(void) {
    int pair[2], off = 0, value = 7, got[MOST];
    socklen_t length = sizeof value;
    CHECK(!socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
    if (getsockopt(pair[1], SOL_SOCKET, SO_PASSRIGHTS, &value, &length)) {
        CHECK_EQUAL(errno, ENOPROTOOPT);
        ready();
        while (go_on()) {}
        PASS();
    }
    CHECK_EQUAL(value, 1);
    int null = open("/dev/null", O_WRONLY);
    give(pair[0], "before", 6, &null, 1, 0);
    CHECK(!setsockopt(pair[1], SOL_SOCKET, SO_PASSRIGHTS, &off, sizeof off));
    ready();
    do {
        union { char raw[CMSG_SPACE(4)]; struct cmsghdr align; } control;
        struct iovec part = {"no", 2};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(4)};
        memcpy(CMSG_DATA(header), &null, 4);
        CHECK(sendmsg(pair[0], &message, 0) == -1);
        CHECK_EQUAL(errno, EPERM);
    } while (go_on());
    CHECK_EQUAL(take(pair[1], "before", 6, got, 0), 1);
    CHECK(write(got[0], "x", 1) == 1);
    PASS();
}
