// object: getifaddrs, getaddrinfo and if_nametoindex, again and again: netlink and UDP sockets that come and go
// status: captured
// note:
#include "object.h"

#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>

int main(void) {
    ready();
    do {
        for (int i = 0; i < 10; i++) {
            struct ifaddrs *list, *at;
            struct addrinfo *found, want = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
            CHECK(getifaddrs(&list) == 0);
            for (at = list; at && strcmp(at->ifa_name, "lo"); at = at->ifa_next) {}
            CHECK(at);
            freeifaddrs(list);
            CHECK_EQUAL(getaddrinfo("localhost", "80", &want, &found), 0);
            freeaddrinfo(found);
            CHECK_EQUAL(if_nametoindex("lo"), 1);
        }
    } while (go_on());
    PASS();
}
