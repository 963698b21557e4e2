// object: unix connections that stay unaccepted, by a path, of several clients and types
// status: captured
#include "object.h"
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static struct sockaddr_un named(const char *path) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    strcpy(name.sun_path, path);
    return name;
}

int main(void) {
    struct sockaddr_un stream = named("/run/stream"), messages = named("/run/messages"), own = named("/run/client");
    int server = socket(AF_UNIX, SOCK_STREAM, 0), other = socket(AF_UNIX, SOCK_SEQPACKET, 0), clients[4], around[2];
    CHECK(!bind(server, (void *)&stream, sizeof stream) && !listen(server, 4) && !chmod("/run/stream", 0777));
    CHECK(!bind(other, (void *)&messages, sizeof messages) && !listen(other, 1) && !chmod("/run", 0777));
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, around));
    pid_t child = fork();
    if (!child) {
        if (setresgid(1002, 1002, 1002) || setresuid(1001, 1001, 1001)) _exit(1);
        int client = socket(AF_UNIX, SOCK_STREAM, 0);
        char byte, answer = '?';
        if (connect(client, (void *)&stream, sizeof stream) || write(around[1], "c", 1) != 1) _exit(2);
        if (read(around[1], &byte, 1) != 1 || write(client, "child", 5) != 5) _exit(3);
        if (read(client, &answer, 1) != 1 || write(around[1], &answer, 1) != 1) _exit(4);
        for (;;) pause();
    }
    char byte, bytes[8] = {0};
    CHECK(read(around[0], &byte, 1) == 1);
    for (int i = 0; i < 3; i++) {
        clients[i] = socket(AF_UNIX, SOCK_STREAM, 0);
        if (i == 1) CHECK(!bind(clients[i], (void *)&own, sizeof own));
        CHECK(!connect(clients[i], (void *)&stream, sizeof stream));
    }
    CHECK(!shutdown(clients[2], SHUT_WR));
    clients[3] = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    CHECK(!connect(clients[3], (void *)&messages, sizeof messages));
    ready();
    do {
        struct pollfd ask[3] = {{server, POLLIN, 0}, {other, POLLIN, 0}, {clients[0], POLLIN | POLLOUT, 0}};
        CHECK(poll(ask, 3, 0) == 3 && ask[0].revents == POLLIN && ask[1].revents == POLLIN && ask[2].revents == POLLOUT);
        struct sockaddr_un name;
        socklen_t length = sizeof name;
        CHECK(!getpeername(clients[0], (void *)&name, &length) && !strcmp(name.sun_path, "/run/stream"));
        struct ucred who;
        length = sizeof who;
        CHECK(!getsockopt(clients[0], SOL_SOCKET, SO_PEERCRED, &who, &length) && who.pid == getpid() && !who.uid);
    } while (go_on());
    // In the order in which they came.
    struct ucred who;
    socklen_t length = sizeof who;
    int accepted = accept(server, 0, 0);
    CHECK(accepted >= 0 && !getsockopt(accepted, SOL_SOCKET, SO_PEERCRED, &who, &length));
    CHECK(who.pid == child && who.uid == 1001 && who.gid == 1002);
    CHECK(write(around[0], "g", 1) == 1 && read(accepted, bytes, 8) == 5 && !memcmp(bytes, "child", 5));
    CHECK(write(accepted, "!", 1) == 1 && read(around[0], &byte, 1) == 1 && byte == '!');
    for (int i = 0; i < 3; i++) {
        struct sockaddr_un name = {0};
        socklen_t size = sizeof name;
        accepted = accept(server, (void *)&name, &size);
        CHECK(accepted >= 0 && !strcmp(name.sun_path, i == 1 ? "/run/client" : ""));
        if (i == 2) CHECK(read(accepted, bytes, 8) == 0);
        CHECK(write(accepted, &"abc"[i], 1) == 1 && read(clients[i], &byte, 1) == 1 && byte == "abc"[i]);
    }
    accepted = accept(other, 0, 0);
    CHECK(accepted >= 0 && write(clients[3], "message", 7) == 7 && read(accepted, bytes, 8) == 7);
    struct pollfd none = {server, POLLIN, 0};
    CHECK(poll(&none, 1, 0) == 0);
    PASS();
}
