// object: a raw socket: ping over the loopback
// status: captured
// note: kept at moments when its queue is empty
#include "object.h"

#include <arpa/inet.h>
#include <netinet/ip_icmp.h>
#include <sys/socket.h>

static unsigned short sum(const unsigned short *words, int count) {
    unsigned total = 0;
    while (count--) total += *words++;
    total = (total & 0xffff) + (total >> 16);
    return ~(total + (total >> 16));
}

int main(void) {
    int fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), ttl = 9;
    // struct icmp_filter: all but echo replies are kept out.
    unsigned filter = ~(1u << ICMP_ECHOREPLY);
    CHECK(setsockopt(fd, SOL_RAW, 1 /* ICMP_FILTER */, &filter, sizeof filter) == 0);
    CHECK(setsockopt(fd, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl) == 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    CHECK(connect(fd, (void *)&to, sizeof to) == 0);
    unsigned short sequence = 0;
    ready();
    do {
        struct icmphdr echo = {.type = ICMP_ECHO, .un.echo = {77, ++sequence}};
        echo.checksum = sum((void *)&echo, sizeof echo / 2);
        CHECK(send(fd, &echo, sizeof echo, 0) == sizeof echo);
        struct { struct iphdr ip; struct icmphdr icmp; } reply;
        CHECK_EQUAL(recv(fd, &reply, sizeof reply, 0), sizeof reply);
        CHECK_EQUAL(reply.icmp.type, ICMP_ECHOREPLY);
        CHECK_EQUAL(reply.icmp.un.echo.sequence, sequence);
    } while (go_on());
    socklen_t length = sizeof filter;
    CHECK(getsockopt(fd, SOL_RAW, 1, &filter, &length) == 0 && filter == ~(1u << ICMP_ECHOREPLY));
    CHECK(getsockopt(fd, IPPROTO_IP, IP_TTL, &ttl, &length) == 0 && ttl == 9);
    PASS();
}
