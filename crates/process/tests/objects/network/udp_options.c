// object: options of UDP sockets, set and changed while captured
// status: captured
// note: SO_ZEROCOPY, SO_TXTIME, UDP_ENCAP, IP options and IPv6 extension headers are refused
#include "object.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>

static struct { int level, name, value; } all[] = {
    {SOL_SOCKET, SO_BROADCAST, 1}, {SOL_SOCKET, SO_REUSEADDR, 1}, {SOL_SOCKET, SO_REUSEPORT, 1},
    {SOL_SOCKET, SO_TIMESTAMPNS, 1}, {SOL_SOCKET, SO_RCVLOWAT, 3}, {SOL_SOCKET, SO_NO_CHECK, 1},
    {SOL_SOCKET, SO_MARK, 77}, {SOL_SOCKET, SO_RXQ_OVFL, 1}, {SOL_SOCKET, SO_DONTROUTE, 1},
    {SOL_SOCKET, SO_BUSY_POLL, 5}, {IPPROTO_IP, IP_TOS, 0x48}, {SOL_SOCKET, SO_PRIORITY, 5}, {IPPROTO_IP, IP_TTL, 7},
    {IPPROTO_IP, IP_PKTINFO, 1}, {IPPROTO_IP, IP_RECVTTL, 1}, {IPPROTO_IP, IP_RECVTOS, 1},
    {IPPROTO_IP, IP_RECVERR, 1}, {IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO}, {IPPROTO_IP, IP_FREEBIND, 1},
    {IPPROTO_IP, IP_TRANSPARENT, 1}, {IPPROTO_IP, IP_MULTICAST_TTL, 9}, {IPPROTO_IP, IP_MULTICAST_LOOP, 0},
    {IPPROTO_IP, IP_MULTICAST_ALL, 0}, {IPPROTO_IP, IP_MINTTL, 3}, {IPPROTO_UDP, 103 /* UDP_SEGMENT */, 1200},
    {IPPROTO_UDP, 104 /* UDP_GRO */, 1}, {IPPROTO_UDP, 1 /* UDP_CORK */, 0},
};

static void set(int fd, int round) {
    // One changes all the time.
    int ttl = 1 + round % 200;
    CHECK(setsockopt(fd, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl) == 0);
}

int main(void) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0), count = sizeof all / sizeof *all, value, round = 0;
    for (int i = 0; i < count; i++) {
        if (setsockopt(fd, all[i].level, all[i].name, &all[i].value, sizeof value)) FAIL("option %d", i);
    }
    struct timeval limit = {3, 0}, got;
    CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3) == 0);
    value = 100000;
    CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &value, sizeof value) == 0);
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(7777)};
    CHECK(bind(fd, (void *)&any, sizeof any) == 0);
    ready();
    do set(fd, ++round);
    while (go_on());
    socklen_t length = sizeof value;
    CHECK(getsockopt(fd, IPPROTO_IP, IP_TTL, &value, &length) == 0);
    CHECK_EQUAL(value, 1 + round % 200);
    for (int i = 0; i < count; i++) {
        if (all[i].name == IP_TTL && all[i].level == IPPROTO_IP) continue;
        CHECK(getsockopt(fd, all[i].level, all[i].name, &value, &length) == 0);
        if (value != all[i].value) FAIL("option %d:%d is %d", all[i].level, all[i].name, value);
    }
    length = sizeof got;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &got, &length) == 0 && memcmp(&got, &limit, sizeof got) == 0);
    length = sizeof value;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &value, &length) == 0);
    CHECK_EQUAL(value, 200000);
    char device[16];
    length = sizeof device;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, &length) == 0 && strcmp(device, "lo") == 0);
    PASS();
}
