// object: credentials of a unix socket's other end (SO_PEERCRED, SO_PEERGROUPS): listeners, connections, pairs, of several users
// status: captured
// note: of a process that has ended the user is kept, and not its id
#include "object.h"
#include <grp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static struct sockaddr_un named(const char *path) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    strcpy(name.sun_path + !*path, path + !*path);
    return name;
}

static void tells(const char *of, int fd, pid_t pid, uid_t uid, gid_t gid) {
    struct ucred who = {0};
    socklen_t length = sizeof who;
    CHECK(!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &length));
    if (who.pid != pid || who.uid != uid || who.gid != gid)
        FAIL("%s tells of process %d, user %u, group %u", of, who.pid, who.uid, who.gid);
}

static void be(uid_t uid, gid_t gid) {
    gid_t group = gid + 100;
    if (setgroups(1, &group) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid)) _exit(9);
}

int main(void) {
    struct sockaddr_un path = named("/run/server"), none = named("\0abstract");
    socklen_t length = sizeof(sa_family_t) + 9;
    int sides[2], by[2], around[2];
    CHECK(!chmod("/run", 0777) && !socketpair(AF_UNIX, SOCK_STREAM, 0, by) && !socketpair(AF_UNIX, SOCK_STREAM, 0, around));
    // A server of one user, clients of another, a pair of a third.
    pid_t server = fork();
    if (!server) {
        be(1001, 1001);
        int byte, listener = socket(AF_UNIX, SOCK_STREAM, 0), other = socket(AF_UNIX, SOCK_SEQPACKET, 0);
        if (bind(listener, (void *)&path, sizeof path) || chmod("/run/server", 0777) || listen(listener, 5)) _exit(2);
        if (bind(other, (void *)&none, length) || listen(other, 5)) _exit(3);
        if (write(by[1], "s", 1) != 1) _exit(4);
        int accepted = accept(listener, 0, 0), messages = accept(other, 0, 0);
        pid_t client;
        if (read(by[1], &client, sizeof client) != sizeof client) _exit(5);
        while (read(by[1], &byte, 1) == 1) {
            tells("the accepted socket", accepted, client, 1002, 1003);
            tells("the accepted socket for messages", messages, client, 1002, 1003);
            tells("the listener", listener, getpid(), 1001, 1001);
            gid_t groups[4];
            socklen_t size = sizeof groups;
            CHECK(!getsockopt(accepted, SOL_SOCKET, 59, groups, &size) && size == sizeof *groups && *groups == 1103);
            // Somebody new, who asks in turn.
            int fresh = socket(AF_UNIX, SOCK_STREAM, 0);
            CHECK(!connect(fresh, (void *)&path, sizeof path));
            int end = accept(listener, 0, 0);
            tells("a fresh socket", fresh, getpid(), 1001, 1001);
            tells("a fresh socket's end", end, getpid(), 1001, 1001);
            CHECK(!close(fresh) && !close(end));
            if (write(by[1], "k", 1) != 1) _exit(6);
        }
        _exit(0);
    }
    char byte;
    CHECK(read(by[0], &byte, 1) == 1);
    pid_t client = fork();
    if (!client) {
        be(1002, 1003);
        int stream = socket(AF_UNIX, SOCK_STREAM, 0), messages = socket(AF_UNIX, SOCK_SEQPACKET, 0);
        if (connect(stream, (void *)&path, sizeof path) || connect(messages, (void *)&none, length)) _exit(2);
        if (socketpair(AF_UNIX, SOCK_DGRAM, 0, sides)) _exit(3);
        if (write(around[1], "c", 1) != 1) _exit(4);
        while (read(around[1], &byte, 1) == 1) {
            tells("the client", stream, server, 1001, 1001);
            tells("the client for messages", messages, server, 1001, 1001);
            tells("a pair of datagrams", sides[0], getpid(), 1002, 1003);
            tells("a pair of datagrams", sides[1], getpid(), 1002, 1003);
            if (getuid() != 1002 || getgid() != 1003 || setuid(0) == 0) _exit(5);
            if (write(around[1], "k", 1) != 1) _exit(6);
        }
        _exit(0);
    }
    CHECK(read(around[0], &byte, 1) == 1 && write(by[0], &client, sizeof client) == sizeof client);
    ready();
    do {
        CHECK(write(by[0], "a", 1) == 1 && read(by[0], &byte, 1) == 1 && byte == 'k');
        CHECK(write(around[0], "a", 1) == 1 && read(around[0], &byte, 1) == 1 && byte == 'k');
        tells("the parent's pair", by[0], getpid(), 0, 0);
        CHECK(getuid() == 0);
    } while (go_on());
    PASS();
}
