// object: packet sockets, raw and cooked, on one interface, with a filter
// status: captured
// note: kept at moments when their queue is empty; promiscuous mode, rings and fanout groups are refused
#include "object.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <sys/socket.h>

int main(void) {
    int raw = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0), out = socket(AF_INET, SOCK_DGRAM, 0), on = 1;
    // Datagrams to port 9999 only: IPv4 without options begins at 14, UDP's destination is at 36.
    struct sock_filter code[] = {
        {BPF_LD | BPF_H | BPF_ABS, 0, 0, 12}, {BPF_JMP | BPF_JEQ | BPF_K, 0, 3, ETH_P_IP},
        {BPF_LD | BPF_H | BPF_ABS, 0, 0, 36}, {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 9999},
        {BPF_RET | BPF_K, 0, 0, 0xffff},      {BPF_RET | BPF_K, 0, 0, 0},
    };
    struct sock_fprog program = {6, code};
    CHECK(setsockopt(raw, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
    CHECK(setsockopt(raw, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on) == 0);
    struct sockaddr_ll name = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = 1}, now;
    CHECK(bind(raw, (void *)&name, sizeof name) == 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9999), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_in no = {.sin_family = AF_INET, .sin_port = htons(9998), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    unsigned count = 0;
    char bytes[2000];
    ready();
    do {
        CHECK(sendto(out, "no", 2, 0, (void *)&no, sizeof no) == 2);
        CHECK(sendto(out, &count, 4, 0, (void *)&to, sizeof to) == 4);
        CHECK_EQUAL(recv(raw, bytes, sizeof bytes, 0), 14 + 20 + 8 + 4);
        CHECK(memcmp(bytes + 42, &count, 4) == 0);
        CHECK(recv(raw, bytes, sizeof bytes, 0) == -1 && errno == EAGAIN);
        count++;
    } while (go_on());
    socklen_t length = sizeof now;
    CHECK(getsockname(raw, (void *)&now, &length) == 0);
    CHECK_EQUAL(now.sll_ifindex, 1);
    CHECK_EQUAL(now.sll_protocol, htons(ETH_P_ALL));
    PASS();
}
