// object: addresses, routes, rules and nftables that the program sets itself
// status: refused: the address 10.11.12.13 of its own
// note: set them with `outlive run --ip` and `--route`; protected again when they are removed
#include "object.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

int main(void) {
    struct ifreq request = {.ifr_name = "lo:1"};
    struct sockaddr_in *address = (struct sockaddr_in *)&request.ifr_addr;
    int socket_of_any_kind = socket(AF_INET, SOCK_DGRAM, 0);
    address->sin_family = AF_INET;
    CHECK(inet_pton(AF_INET, "10.11.12.13", &address->sin_addr) == 1);
    CHECK(!ioctl(socket_of_any_kind, SIOCSIFADDR, &request));
    ready();
    while (go_on()) {}
    PASS();
}
