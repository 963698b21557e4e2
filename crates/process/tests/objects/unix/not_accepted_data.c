// object: a unix connection that stays unaccepted and has said something already
// status: refused: not accepted
// note: kept as soon as it is accepted; nobody can look into that queue
#include "object.h"
#include <sys/socket.h>
#include <sys/un.h>

int main(void) {
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "/run/server.sock"};
    int server = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(!bind(server, (void *)&name, sizeof name) && !listen(server, 16));
    CHECK(!connect(client, (void *)&name, sizeof name) && write(client, "hello", 5) == 5);
    ready();
    while (go_on()) {}
    PASS();
}
