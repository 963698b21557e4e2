// object: addresses that come and go while the program is at work, as a failover address of a cluster does
// status: captured
// note: what an epoch ends with is what the copy has
#include "ip.h"
#include <arpa/inet.h>
#include <sys/socket.h>

int main(void) {
    const char *device = ip_device();
    unsigned count = 0;
    ready();
    do {
        struct sockaddr_in at = {.sin_family = AF_INET};
        char address[32];
        snprintf(address, sizeof address, "198.51.100.%u", 1 + count % 200);
        ip("addr add %s/32 dev %s", address, device);
        CHECK(inet_pton(AF_INET, address, &at.sin_addr) == 1);
        int bound = socket(AF_INET, SOCK_DGRAM, 0);
        if (bind(bound, (struct sockaddr *)&at, sizeof at)) FAIL("bind to %s, the last that was added", address);
        if (count % 2) {
            ip("addr del %s/32 dev %s", address, device);
        }
        if (count) {
            // The one before stayed, or went.
            snprintf(address, sizeof address, "198.51.100.%u", count % 200);
            CHECK(inet_pton(AF_INET, address, &at.sin_addr) == 1);
            int other = socket(AF_INET, SOCK_DGRAM, 0);
            int bound_before = !bind(other, (struct sockaddr *)&at, sizeof at);
            CHECK_EQUAL(bound_before, count % 2);
            if (bound_before) ip("addr del %s/32 dev %s", address, device), close(other);
            else close(other);
        }
        close(bound);
        count++;
    } while (go_on());
    CHECK(count > 0);
    PASS();
}
