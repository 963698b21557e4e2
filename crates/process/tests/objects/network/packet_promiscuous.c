// object: a packet socket that makes an interface promiscuous, or joins groups
// status: refused: promiscuous
// note: what it joined cannot be read back
#include "object.h"

#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <sys/socket.h>

int main(void) {
    int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ARP));
    struct packet_mreq request = {.mr_ifindex = 1, .mr_type = PACKET_MR_PROMISC};
    CHECK(setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &request, sizeof request) == 0);
    ready();
    while (go_on()) {}
    CHECK(setsockopt(fd, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &request, sizeof request) == 0);
    PASS();
}
