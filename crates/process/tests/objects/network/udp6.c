// object: UDP over IPv6, and IPv4 through a socket for both
// status: captured
// note: with hop limits, traffic classes and destinations of what waits
#include "object.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

static int on = 1;

int main(void) {
    int to = socket(AF_INET6, SOCK_DGRAM, 0), six = socket(AF_INET6, SOCK_DGRAM, 0), four = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in6 any = {.sin6_family = AF_INET6}, loop = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    socklen_t length = sizeof any;
    CHECK(bind(to, (void *)&any, sizeof any) == 0 && getsockname(to, (void *)&any, &length) == 0);
    loop.sin6_port = any.sin6_port;
    struct sockaddr_in loop4 = {.sin_family = AF_INET, .sin_port = any.sin6_port, .sin_addr = {htonl(INADDR_LOOPBACK + 5)}};
    int hops = 33, class = 0xb8, ttl = 44;
    CHECK(setsockopt(six, IPPROTO_IPV6, IPV6_UNICAST_HOPS, &hops, sizeof hops) == 0);
    CHECK(setsockopt(six, IPPROTO_IPV6, IPV6_TCLASS, &class, sizeof class) == 0);
    CHECK(setsockopt(four, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl) == 0);
    CHECK(setsockopt(to, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on) == 0);
    CHECK(setsockopt(to, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, &on, sizeof on) == 0);
    CHECK(setsockopt(to, IPPROTO_IPV6, IPV6_RECVTCLASS, &on, sizeof on) == 0);
    CHECK(setsockopt(to, IPPROTO_IP, IP_RECVTTL, &on, sizeof on) == 0);
    unsigned sent = 0, got = 0;
    do {
        for (; sent - got < 12; sent++) {
            int v4 = sent & 1;
            ssize_t count = v4 ? sendto(four, &sent, 4, 0, (void *)&loop4, sizeof loop4)
                               : sendto(six, &sent, 4, 0, (void *)&loop, sizeof loop);
            CHECK_EQUAL(count, 4);
        }
        if (sent == 12) ready();
        for (; sent - got > 6; got++) {
            char control[256];
            struct sockaddr_in6 peer;
            unsigned value = 0;
            struct iovec part = {&value, sizeof value};
            struct msghdr message = {&peer, sizeof peer, &part, 1, control, sizeof control, 0};
            CHECK_EQUAL(recvmsg(to, &message, MSG_DONTWAIT), 4);
            CHECK_EQUAL(value, got);
            CHECK_EQUAL(IN6_IS_ADDR_V4MAPPED(&peer.sin6_addr) != 0, got & 1);
            int seen = 0;
            for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
                int number = *(int *)CMSG_DATA(c);
                if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
                    struct in6_pktinfo *info = (void *)CMSG_DATA(c);
                    CHECK_EQUAL(info->ipi6_ifindex, 1);
                    if (got & 1) CHECK_EQUAL(info->ipi6_addr.s6_addr32[3], loop4.sin_addr.s_addr);
                    else CHECK(memcmp(&info->ipi6_addr, &in6addr_loopback, 16) == 0);
                    seen |= 1;
                }
                if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_HOPLIMIT) { CHECK_EQUAL(number, hops); seen |= 2; }
                if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS) { CHECK_EQUAL(number, class); seen |= 4; }
                if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TTL) { CHECK_EQUAL(number, ttl); seen |= 8; }
            }
            CHECK_EQUAL(seen, got & 1 ? 9 : 7);
        }
    } while (go_on());
    PASS();
}
