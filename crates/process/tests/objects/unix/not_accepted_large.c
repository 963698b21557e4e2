// object: a unix connection that stays unaccepted and has said more than some 3,700 bytes at once
// status: refused: much at once
// note: kept as soon as it is accepted
#include "object.h"
#include <sys/socket.h>
#include <sys/un.h>

int main(void) {
    static char much[20000];
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "/run/server.sock"};
    int server = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(!bind(server, (void *)&name, sizeof name) && !listen(server, 16));
    CHECK(!connect(client, (void *)&name, sizeof name) && write(client, much, sizeof much) == sizeof much);
    ready();
    while (go_on()) {}
    PASS();
}
