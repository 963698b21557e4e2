// object: routing rules of the program's own, IPv4 and IPv6: by source, mark, interface, port, user, inverted, to a table, or to nowhere; and one of the kernel's that it has removed
// status: captured
// note:
#include "ip.h"
#include <arpa/inet.h>
#include <sys/socket.h>

static const char *list(void) { return ip_output("-d rule; " IP "-6 -d rule"); }

int main(void) {
    ip("route add blackhole default table 100");
    ip("rule add from 10.1.0.0/16 to 10.2.0.0/16 tos 0x10 priority 1000 table 100");
    ip("rule add fwmark 0x7/0xff priority 1001 table 100");
    ip("rule add iif lo uidrange 9000-9999 ipproto tcp dport 80-90 priority 1002 lookup 100");
    ip("rule add not from 10.3.0.0/16 to 10.4.0.0/16 oif not-there priority 1003 lookup 100");
    ip("rule add to 10.5.0.0/16 priority 1004 prohibit");
    ip("rule add to 10.6.0.0/16 priority 1005 goto 32766");
    ip("rule add suppress_prefixlength 0 priority 1006 table main");
    ip("rule del priority 32767");
    ip("-6 rule add from 2001:db8::/32 priority 50 unreachable");
    const char *before = list();
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(0x7f000001)};
    int mark = 7;
    ready();
    do {
        int probe = socket(AF_INET, SOCK_DGRAM, 0);
        CHECK(!setsockopt(probe, SOL_SOCKET, SO_MARK, &mark, sizeof mark));
        at.sin_addr.s_addr = htonl(0x0a050001);
        CHECK(connect(probe, (struct sockaddr *)&at, sizeof at) < 0);
        close(probe);
    } while (go_on());
    ip_same("rules", before, list());
    ip("rule del priority 1001");
    PASS();
}
