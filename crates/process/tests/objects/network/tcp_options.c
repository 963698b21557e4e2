// object: options of TCP sockets, on a listener, inherited from it, and on connections
// status: captured
// note: MD5 keys, zero-copy sending, SO_TIMESTAMPING, SO_TXTIME, TCP_SAVE_SYN and IP options are refused
#include "object.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>

static struct { int level, name, value; } all[] = {
    {SOL_SOCKET, SO_KEEPALIVE, 1}, {IPPROTO_TCP, TCP_KEEPIDLE, 77}, {IPPROTO_TCP, TCP_KEEPINTVL, 7},
    {IPPROTO_TCP, TCP_KEEPCNT, 3}, {IPPROTO_TCP, TCP_NODELAY, 1}, {IPPROTO_TCP, TCP_USER_TIMEOUT, 123456},
    {IPPROTO_TCP, TCP_SYNCNT, 4}, {IPPROTO_TCP, TCP_LINGER2, 11}, {IPPROTO_TCP, 25 /* TCP_NOTSENT_LOWAT */, 16384},
    {IPPROTO_IP, IP_TOS, 0x10}, {SOL_SOCKET, SO_PRIORITY, 4}, {IPPROTO_IP, IP_TTL, 40}, {SOL_SOCKET, SO_MARK, 8},
    {SOL_SOCKET, SO_RCVLOWAT, 2}, {SOL_SOCKET, SO_OOBINLINE, 1}, {SOL_SOCKET, SO_BUSY_POLL, 3},
    {IPPROTO_IP, IP_FREEBIND, 1}, {IPPROTO_IP, IP_TRANSPARENT, 1}, {IPPROTO_IP, IP_RECVTOS, 1},
    {SOL_SOCKET, SO_REUSEADDR, 1}, {SOL_SOCKET, SO_REUSEPORT, 1}, {SOL_SOCKET, SO_TIMESTAMP, 1},
};
static const int count = sizeof all / sizeof *all;
static struct linger linger = {1, 5};
static struct timeval receive = {9, 0}, send_limit = {8, 0};

static void set(int fd) {
    for (int i = 0; i < count; i++)
        if (setsockopt(fd, all[i].level, all[i].name, &all[i].value, 4)) FAIL("option %d", i);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &receive, sizeof receive) == 0);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &send_limit, sizeof send_limit) == 0);
    CHECK(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4) == 0);
}

static void look(int fd, int which) {
    socklen_t length = 4;
    for (int i = 0, value; i < count; i++) {
        CHECK(getsockopt(fd, all[i].level, all[i].name, &value, &length) == 0);
        // Not inherited by what is accepted.
        if (which == 1 && all[i].name == SO_PRIORITY && all[i].level == SOL_SOCKET) continue;
        if (value != all[i].value) FAIL("socket %d: option %d:%d is %d", which, all[i].level, all[i].name, value);
    }
    struct linger now;
    struct timeval limit;
    length = sizeof now;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_LINGER, &now, &length) == 0 && memcmp(&now, &linger, sizeof now) == 0);
    length = sizeof limit;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, &length) == 0 && limit.tv_sec == 9);
    CHECK(getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, &length) == 0 && limit.tv_sec == 8);
}

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0), defer = 6, clamp = 20000;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof here;
    set(listener);
    CHECK(bind(listener, (void *)&here, sizeof here) == 0 && listen(listener, 5) == 0);
    CHECK(getsockname(listener, (void *)&here, &length) == 0 && connect(client, (void *)&here, sizeof here) == 0);
    int server = accept(listener, 0, 0);
    CHECK(server >= 0);
    CHECK(setsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, &defer, sizeof defer) == 0);
    length = sizeof defer;
    CHECK(getsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, &defer, &length) == 0);
    int before = defer, round = 0, value;
    ready();
    do {
        // Set while it is captured, and used.
        if (round++ == 5) set(client);
        CHECK(send(client, &round, 4, 0) == 4 && recv(server, &value, 4, 0) == 4 && value == round);
    } while (go_on());
    look(listener, 0), look(server, 1), look(client, 2);
    CHECK(getsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, &defer, &length) == 0);
    CHECK_EQUAL(defer, before);
    CHECK(setsockopt(client, IPPROTO_TCP, TCP_WINDOW_CLAMP, &clamp, sizeof clamp) == 0);
    PASS();
}
