// object: UDP over IPv4: a receive queue with the senders' addresses
// status: captured
// note: looked at without taking from it; the time stamps of what waits are of its arrival on the new node
#include "object.h"

#include <arpa/inet.h>
#include <sys/socket.h>

int main(void) {
    int to = socket(AF_INET, SOCK_DGRAM, 0), from[3];
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}}, at[3], peer;
    socklen_t length = sizeof here;
    CHECK(bind(to, (void *)&here, sizeof here) == 0 && getsockname(to, (void *)&here, &length) == 0);
    for (int i = 0; i < 3; i++) {
        at[i] = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK + i)}};
        from[i] = socket(AF_INET, SOCK_DGRAM, 0);
        CHECK(bind(from[i], (void *)&at[i], sizeof at[i]) == 0);
        length = sizeof at[i];
        CHECK(getsockname(from[i], (void *)&at[i], &length) == 0);
    }
    unsigned sent = 0, got = 0;
    char bytes[1500];
    do {
        // Between 20 and 40 wait at any time; of all lengths, the empty one among them.
        while (sent - got < 40) {
            unsigned length = sent % 7 == 0 ? 0 : 4 + sent % 1400;
            memset(bytes, sent, sizeof bytes);
            memcpy(bytes, &sent, sizeof sent);
            CHECK_EQUAL(sendto(from[sent % 3], bytes, length, 0, (void *)&here, sizeof here), length);
            sent++;
            if (sent == 40) ready();
        }
        while (sent - got > 20) {
            length = sizeof peer;
            ssize_t count = recvfrom(to, bytes, sizeof bytes, MSG_DONTWAIT, (void *)&peer, &length);
            CHECK_EQUAL(count, got % 7 == 0 ? 0 : 4 + got % 1400);
            if (count) CHECK_EQUAL(*(unsigned *)bytes, got);
            if (count > 4) CHECK_EQUAL(bytes[count - 1], (char)got);
            CHECK(memcmp(&peer, &at[got % 3], sizeof peer) == 0);
            got++;
        }
    } while (go_on());
    struct sockaddr_in now;
    length = sizeof now;
    CHECK(getsockname(to, (void *)&now, &length) == 0 && memcmp(&now, &here, sizeof now) == 0);
    PASS();
}
