// Descriptors that travel in messages of unix sockets.
#ifndef RIGHTS_H
#define RIGHTS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "object.h"
#include <sys/socket.h>

#define MOST 8

// `who` also says who sends.
static void give(int socket, const char *text, size_t length, const int *fds, int count, int who) {
    union { char raw[CMSG_SPACE(4 * MOST) + CMSG_SPACE(sizeof(struct ucred))]; struct cmsghdr align; } control;
    memset(&control, 0, sizeof control);
    struct iovec part = {(void *)text, length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(4 * count)};
    memcpy(CMSG_DATA(header), fds, 4 * count);
    size_t used = CMSG_SPACE(4 * count);
    if (who) {
        struct ucred own = {getpid(), getuid(), getgid()};
        header = CMSG_NXTHDR(&message, header);
        *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_CREDENTIALS, .cmsg_len = CMSG_LEN(sizeof own)};
        memcpy(CMSG_DATA(header), &own, sizeof own);
        used += CMSG_SPACE(sizeof own);
    }
    message.msg_controllen = used;
    CHECK(sendmsg(socket, &message, 0) == (ssize_t)length);
}

// What is received in one piece: the bytes, which are as many, and the descriptors, of which it gives the number.
static int take(int socket, const char *text, size_t length, int *fds, struct ucred *who) {
    union { char raw[1024]; struct cmsghdr align; } control;
    char bytes[256];
    struct iovec part = {bytes, sizeof bytes};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    int count = 0;
    ssize_t got = recvmsg(socket, &message, MSG_DONTWAIT);
    if (got != (ssize_t)length || memcmp(bytes, text, length)) FAIL("received %zd bytes, not %s", got, text);
    CHECK(!(message.msg_flags & (MSG_CTRUNC | MSG_TRUNC)));
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_type == SCM_CREDENTIALS && who) memcpy(who, CMSG_DATA(header), sizeof *who);
        if (header->cmsg_type != SCM_RIGHTS) continue;
        count = (header->cmsg_len - CMSG_LEN(0)) / 4;
        CHECK(count <= MOST);
        memcpy(fds, CMSG_DATA(header), 4 * count);
    }
    return count;
}

#endif
