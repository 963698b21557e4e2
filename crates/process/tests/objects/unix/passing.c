// object: descriptors passed between processes (SCM_RIGHTS), received at once
// status: captured
#include "object.h"
#include <sys/socket.h>

static void give(int socket, int fd) {
    union { char raw[CMSG_SPACE(4)]; struct cmsghdr align; } control = {0};
    struct iovec part = {"f", 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = CMSG_LEN(4)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(4)};
    memcpy(CMSG_DATA(header), &fd, 4);
    if (sendmsg(socket, &message, 0) != 1) _exit(1);
}

static int take(int socket) {
    union { char raw[CMSG_SPACE(4)]; struct cmsghdr align; } control = {0};
    char byte;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    int fd = -1;
    if (recvmsg(socket, &message, 0) != 1) return -1;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), 4);
    return fd;
}

int main(void) {
    int pair[2];
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    if (!fork()) {
        for (int fd; (fd = take(pair[1])) >= 0; close(fd))
            if (write(fd, "hello", 5) != 5) _exit(1);
        _exit(0);
    }
    ready();
    do {
        int ends[2];
        char text[8];
        CHECK(!pipe(ends));
        give(pair[0], ends[1]);
        close(ends[1]);
        CHECK(read(ends[0], text, 8) == 5 && !memcmp(text, "hello", 5));
        CHECK(read(ends[0], text, 8) == 0);
        close(ends[0]);
    } while (go_on());
    PASS();
}
