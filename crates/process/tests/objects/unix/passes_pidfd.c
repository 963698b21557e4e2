// object: messages with pidfds of their senders (SO_PASSPIDFD) that wait in unix sockets
// status: captured
// note: refused without SO_PASSCRED, while messages wait
#include "object.h"
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define PASSPIDFD 76
#define SENDER 4

int main(void) {
    int pair[2], on = 1, status;
    CHECK(!socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
    CHECK(!setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
    CHECK(!setsockopt(pair[1], SOL_SOCKET, PASSPIDFD, &on, sizeof on));
    pid_t child = fork();
    if (!child) {
        if (write(pair[0], "hello", 5) != 5) _exit(1);
        for (;;) pause();
    }
    // Until it has been sent.
    char bytes[8];
    CHECK(recv(pair[1], bytes, 8, MSG_PEEK) == 5);
    ready();
    while (go_on()) {
        socklen_t length = sizeof on;
        CHECK(!getsockopt(pair[1], SOL_SOCKET, PASSPIDFD, &on, &length) && on == 1);
    }
    union { char raw[256]; struct cmsghdr align; } control;
    struct iovec part = {bytes, sizeof bytes};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    CHECK(recvmsg(pair[1], &message, 0) == 5);
    int sender = -1;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header))
        if (header->cmsg_type == SENDER) memcpy(&sender, CMSG_DATA(header), sizeof sender);
    CHECK(sender >= 0 && !syscall(SYS_pidfd_send_signal, sender, SIGKILL, 0, 0));
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
    PASS();
}
