// object: connections and sockets whose address, or whose way to the peer, the program has removed, until it gives it back
// status: captured
// note: as on any machine they say nothing meanwhile
#include "ip.h"
#include <arpa/inet.h>
#include <sys/socket.h>

static struct sockaddr_in at(const char *address, int port) {
    struct sockaddr_in found = {.sin_family = AF_INET, .sin_port = htons(port)};
    CHECK(inet_pton(AF_INET, address, &found.sin_addr) == 1);
    return found;
}

int main(void) {
    const char *device = ip_device();
    socklen_t length = sizeof(struct sockaddr_in);
    ip("addr add 198.51.100.9/32 dev %s", device);
    ip("route add 203.0.113.0/24 dev %s", device);
    struct sockaddr_in own = at("198.51.100.9", 0), far = at("203.0.113.7", 7);
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(!bind(listener, (struct sockaddr *)&own, sizeof own) && !listen(listener, 5));
    CHECK(!getsockname(listener, (struct sockaddr *)&own, &length));
    CHECK(!connect(client, (struct sockaddr *)&own, sizeof own));
    int server = accept(listener, 0, 0);
    CHECK(server >= 0);
    int datagram = socket(AF_INET, SOCK_DGRAM, 0), bound = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK(!connect(datagram, (struct sockaddr *)&far, sizeof far));
    struct sockaddr_in any_port = at("198.51.100.9", 0);
    CHECK(!bind(bound, (struct sockaddr *)&any_port, sizeof any_port));
    ip("addr del 198.51.100.9/32 dev %s", device);
    ip("route del 203.0.113.0/24 dev %s", device);
    ip("route add prohibit 203.0.113.0/24");
    ready();
    while (go_on()) {}
    char *addresses = ip_output("addr show"), *routes = ip_output("route show");
    CHECK(!strstr(addresses, "198.51.100.9") && !strstr(routes, "203.0.113.7") && strstr(routes, "prohibit 203.0.113.0/24"));
    ip("addr add 198.51.100.9/32 dev %s", device);
    ip("route del prohibit 203.0.113.0/24");
    char word[8] = {0};
    CHECK(write(client, "there", 5) == 5 && read(server, word, 5) == 5 && !strcmp(word, "there"));
    CHECK(write(server, "again", 5) == 5 && read(client, word, 5) == 5 && !strcmp(word, "again"));
    int second = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(!connect(second, (struct sockaddr *)&own, sizeof own) && accept(listener, 0, 0) >= 0);
    struct sockaddr_in found;
    length = sizeof found;
    CHECK(!getpeername(datagram, (struct sockaddr *)&found, &length) && found.sin_addr.s_addr == far.sin_addr.s_addr);
    length = sizeof found;
    CHECK(!getsockname(bound, (struct sockaddr *)&found, &length) && found.sin_addr.s_addr == own.sin_addr.s_addr);
    PASS();
}
