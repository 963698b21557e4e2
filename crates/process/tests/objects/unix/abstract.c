// object: unix listener and connections by an abstract name
// status: captured
#include "object.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

int main(void) {
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "\0server"}, found;
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + 7, size;
    int server = socket(AF_UNIX, SOCK_SEQPACKET, 0), client = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    CHECK(!bind(server, (void *)&name, length) && !listen(server, 4));
    CHECK(!connect(client, (void *)&name, length));
    int end = accept(server, 0, 0);
    ready();
    char text[100];
    unsigned in = 0, out = 0;
    do {
        memset(text, in, sizeof text);
        CHECK(send(client, text, 1 + in % 90, 0) == 1 + in % 90);
        in++;
        if (in - out > 5) {
            CHECK_EQUAL(recv(end, text, sizeof text, 0), 1 + out % 90);
            CHECK_EQUAL(text[0], (char)out);
            out++;
        }
        size = sizeof found;
        CHECK(!getsockname(end, (void *)&found, &size) && size == length);
        CHECK(!memcmp(found.sun_path, "\0server", 7));
    } while (go_on());
    int other = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    CHECK(!connect(other, (void *)&name, length) && accept(server, 0, 0) >= 0);
    PASS();
}
