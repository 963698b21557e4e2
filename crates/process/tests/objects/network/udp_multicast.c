// object: multicast groups joined by UDP sockets, IPv4 and IPv6, also for named sources only
// status: captured
// note: joined anew, and thereby announced, when the workload is taken over
#include "object.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

int main(void) {
    struct sockaddr_in group = {.sin_family = AF_INET, .sin_port = htons(5353)}, from;
    inet_pton(AF_INET, "239.1.2.3", &group.sin_addr);
    int member = socket(AF_INET, SOCK_DGRAM, 0), other = socket(AF_INET, SOCK_DGRAM, 0), out = socket(AF_INET, SOCK_DGRAM, 0);
    int on = 1, off = 0;
    for (int i = 0; i < 2; i++) {
        int fd = i ? other : member;
        CHECK(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0);
        // Else every socket gets what any has joined for.
        CHECK(setsockopt(fd, IPPROTO_IP, IP_MULTICAST_ALL, &off, sizeof off) == 0);
        CHECK(bind(fd, (void *)&group, sizeof group) == 0);
    }
    struct ip_mreqn join = {group.sin_addr, {0}, 1};
    CHECK(setsockopt(member, IPPROTO_IP, IP_ADD_MEMBERSHIP, &join, sizeof join) == 0);
    struct ip_mreq_source source = {group.sin_addr, {htonl(INADDR_LOOPBACK)}, {htonl(INADDR_LOOPBACK + 8)}};
    CHECK(setsockopt(other, IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, &source, sizeof source) == 0);
    struct ip_mreqn interface = {{0}, {htonl(INADDR_LOOPBACK)}, 1};
    CHECK(setsockopt(out, IPPROTO_IP, IP_MULTICAST_IF, &interface, sizeof interface) == 0);
    int six = socket(AF_INET6, SOCK_DGRAM, 0);
    struct sockaddr_in6 group6 = {.sin6_family = AF_INET6, .sin6_port = htons(5354)};
    CHECK(bind(six, (void *)&group6, sizeof group6) == 0);
    inet_pton(AF_INET6, "ff02::1234", &group6.sin6_addr);
    struct ipv6_mreq join6 = {group6.sin6_addr, 1};
    CHECK(setsockopt(six, IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP, &join6, sizeof join6) == 0);
    CHECK(setsockopt(six, IPPROTO_IPV6, IPV6_MULTICAST_IF, &on, sizeof on) == 0);
    CHECK(setsockopt(six, IPPROTO_IPV6, IPV6_MULTICAST_ALL, &off, sizeof off) == 0);
    unsigned sent = 0, got = 0, value;
    do {
        for (; sent - got < 8; sent++) {
            CHECK_EQUAL(sendto(out, &sent, 4, 0, (void *)&group, sizeof group), 4);
        }
        if (sent == 8) ready();
        for (; sent - got > 4; got++) {
            socklen_t length = sizeof from;
            CHECK_EQUAL(recvfrom(member, &value, 4, MSG_DONTWAIT, (void *)&from, &length), 4);
            CHECK_EQUAL(value, got);
        }
        // Not from the source that this one wants to hear.
        CHECK(recv(other, &value, 4, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    } while (go_on());
    int wanted = socket(AF_INET, SOCK_DGRAM, 0);
    from = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = source.imr_sourceaddr};
    CHECK(bind(wanted, (void *)&from, sizeof from) == 0);
    CHECK(setsockopt(wanted, IPPROTO_IP, IP_MULTICAST_IF, &interface, sizeof interface) == 0);
    CHECK(sendto(wanted, "y", 1, 0, (void *)&group, sizeof group) == 1);
    CHECK_EQUAL(recv(other, &value, 4, MSG_DONTWAIT), 1);
    // Leaving works only where it has joined.
    CHECK(setsockopt(member, IPPROTO_IP, IP_DROP_MEMBERSHIP, &join, sizeof join) == 0);
    CHECK(setsockopt(six, IPPROTO_IPV6, IPV6_DROP_MEMBERSHIP, &join6, sizeof join6) == 0);
    PASS();
}
