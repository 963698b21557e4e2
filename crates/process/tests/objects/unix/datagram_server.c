// object: unix datagrams to a server with a path, from a client without a name, with some in the queue
// status: captured
#include "object.h"
#include <sys/socket.h>
#include <sys/un.h>

int main(void) {
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "/run/log"};
    int server = socket(AF_UNIX, SOCK_DGRAM, 0), client = socket(AF_UNIX, SOCK_DGRAM, 0);
    CHECK(!bind(server, (void *)&name, sizeof name));
    CHECK(!connect(client, (void *)&name, sizeof name));
    ready();
    unsigned in = 0, out = 0, text[20];
    do {
        text[0] = in;
        CHECK(send(client, text, 4 * (1 + in % 20), 0) > 0);
        in++;
        if (in - out > 4) {
            CHECK_EQUAL(recv(server, text, sizeof text, 0), 4 * (1 + out % 20));
            CHECK_EQUAL(text[0], out);
            out++;
        }
    } while (go_on());
    for (; out < in; out++) CHECK(recv(server, text, sizeof text, 0) > 0 && text[0] == out);
    PASS();
}
