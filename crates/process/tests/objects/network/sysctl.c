// object: settings below `/proc/sys`
// status: hidden
// note: read-only (EROFS), as in containers; those of the workload's network are made alike on every node. Nothing tells when a program writes there, so that it may not
#include "object.h"
#include <fcntl.h>

int main(void) {
    ready();
    while (go_on()) {
        int file = open("/proc/sys/net/ipv4/ip_local_port_range", O_WRONLY);
        CHECK(file == -1);
        CHECK_EQUAL(errno, EROFS);
        file = open("/proc/sys/net/ipv4/ip_local_port_range", O_RDONLY);
        CHECK(file >= 0 && !close(file));
    }
    PASS();
}
