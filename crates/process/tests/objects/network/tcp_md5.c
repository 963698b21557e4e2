// object: TCP with MD5 signatures (TCP_MD5SIG), on a listener
// status: refused: MD5
// note: a takeover asks peers by segments of its own, which are not signed
#include "object.h"

#include <arpa/inet.h>
#include <linux/tcp.h>
#include <sys/socket.h>

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct tcp_md5sig key = {.tcpm_keylen = 6, .tcpm_key = "secret"};
    memcpy(&key.tcpm_addr, &peer, sizeof peer);
    CHECK(listen(listener, 5) == 0);
    CHECK(setsockopt(listener, IPPROTO_TCP, TCP_MD5SIG, &key, sizeof key) == 0);
    ready();
    while (go_on()) {}
    PASS();
}
