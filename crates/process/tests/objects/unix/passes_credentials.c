// object: messages with their senders' credentials that wait in unix sockets (SO_PASSCRED), as a log or a service manager has them
// status: captured
// note: of a sender that has ended the user is kept, and not its id
#include "object.h"
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static struct sockaddr_un named(const char *path) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    strcpy(name.sun_path + !*path, path + !*path);
    return name;
}

// The next message: its first byte, who sent it, and under what name.
static char next(int fd, struct ucred *who, struct sockaddr_un *name, int *length) {
    char bytes[16];
    union { char raw[CMSG_SPACE(sizeof *who)]; struct cmsghdr align; } control = {0};
    struct iovec part = {bytes, sizeof bytes};
    struct msghdr message = {.msg_name = name, .msg_namelen = sizeof *name, .msg_iov = &part, .msg_iovlen = 1,
                             .msg_control = &control, .msg_controllen = sizeof control};
    memset(name, 0, sizeof *name);
    *length = recvmsg(fd, &message, 0);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    CHECK(*length > 0 && header && header->cmsg_type == SCM_CREDENTIALS);
    memcpy(who, CMSG_DATA(header), sizeof *who);
    return *bytes;
}

static void passes(int fd) {
    int yes = 1;
    CHECK(!setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &yes, sizeof yes));
}

static void expect(int fd, char byte, int bytes, pid_t pid, uid_t uid, const char *from) {
    struct ucred who;
    struct sockaddr_un name;
    int length;
    char got = next(fd, &who, &name, &length);
    if (got != byte || length != bytes || who.pid != pid || who.uid != uid || strcmp(name.sun_path, from))
        FAIL("%c of %d bytes came as %c of %d, from process %d, user %u, '%s'", byte, bytes, got, length, who.pid, who.uid, name.sun_path);
}

int main(void) {
    struct sockaddr_un server = named("/run/log"), own = named("/run/client"), abstract = named("\0someone");
    int log = socket(AF_UNIX, SOCK_DGRAM, 0), stream[2], orders[2], plain = socket(AF_UNIX, SOCK_DGRAM, 0);
    passes(log);
    CHECK(!bind(log, (void *)&server, sizeof server) && !chmod("/run/log", 0777) && !chmod("/run", 0777));
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, stream) && !socketpair(AF_UNIX, SOCK_STREAM, 0, orders));
    passes(stream[0]);
    pid_t child = fork();
    if (!child) {
        if (setresgid(1002, 1002, 1002) || setresuid(1001, 1001, 1001)) _exit(1);
        int with_path = socket(AF_UNIX, SOCK_DGRAM, 0), with_name = socket(AF_UNIX, SOCK_DGRAM, 0);
        if (bind(with_path, (void *)&own, sizeof own)) _exit(2);
        if (bind(with_name, (void *)&abstract, sizeof(sa_family_t) + 8)) _exit(3);
        char byte;
        while (read(orders[1], &byte, 1) == 1) {
            if (sendto(with_path, "pp", 2, 0, (void *)&server, sizeof server) != 2) _exit(4);
            if (sendto(with_name, "nnn", 3, 0, (void *)&server, sizeof server) != 3) _exit(5);
            if (write(stream[1], "ccc", 3) != 3 || write(orders[1], "k", 1) != 1) _exit(6);
        }
        _exit(0);
    }
    char byte;
    for (int round = 0;; round++) {
        CHECK(write(stream[1], "aaaa", 4) == 4);
        CHECK(write(orders[0], "o", 1) == 1 && read(orders[0], &byte, 1) == 1);
        CHECK(write(stream[1], "bb", 2) == 2 && write(stream[1], "b", 1) == 1);
        CHECK(sendto(plain, "u", 1, 0, (void *)&server, sizeof server) == 1);
        if (!round) ready();
        // Two rounds wait whenever it is stopped.
        int more = go_on();
        if (!more) {
            struct ucred who;
            struct sockaddr_un name;
            int length;
            // As many pieces as there were senders, in their order.
            CHECK(next(stream[0], &who, &name, &length) == 'a' && who.pid == getpid() && length == 4);
            CHECK(next(stream[0], &who, &name, &length) == 'c' && who.pid == child && who.uid == 1001 && who.gid == 1002 && length == 3);
            CHECK(next(stream[0], &who, &name, &length) == 'b' && who.pid == getpid() && length == 3);
            expect(log, 'p', 2, child, 1001, "/run/client");
            CHECK(next(log, &who, &name, &length) == 'n' && who.pid == child && !memcmp(name.sun_path, "\0someone", 8));
            expect(log, 'u', 1, getpid(), 0, "");
            PASS();
        }
        char drain[16];
        while (recv(stream[0], drain, sizeof drain, MSG_DONTWAIT) > 0) {}
        expect(log, 'p', 2, child, 1001, "/run/client");
        while (recv(log, drain, sizeof drain, MSG_DONTWAIT) > 0) {}
    }
}
