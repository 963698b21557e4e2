// object: unix listener by path, clients that come and go
// status: captured
#include "object.h"
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

int main(void) {
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "/run/server.sock"}, peer;
    int server = socket(AF_UNIX, SOCK_STREAM, 0), kept[2];
    CHECK(!bind(server, (void *)&name, sizeof name) && !listen(server, 16));
    CHECK(!chmod(name.sun_path, 0660));
    kept[0] = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(!connect(kept[0], (void *)&name, sizeof name));
    kept[1] = accept(server, 0, 0);
    ready();
    unsigned count = 0, got;
    do {
        int client = socket(AF_UNIX, SOCK_STREAM, 0);
        CHECK(!connect(client, (void *)&name, sizeof name));
        int end = accept(server, 0, 0);
        CHECK(end >= 0);
        CHECK(write(client, &count, 4) == 4 && read(end, &got, 4) == 4 && got == count);
        CHECK(write(kept[0], &count, 4) == 4 && read(kept[1], &got, 4) == 4 && got == count);
        close(client);
        CHECK(read(end, &got, 4) == 0);
        close(end);
        socklen_t length = sizeof peer;
        CHECK(!getpeername(kept[0], (void *)&peer, &length));
        CHECK(!strcmp(peer.sun_path, name.sun_path));
        count++;
    } while (go_on());
    struct stat stat_;
    CHECK(!stat(name.sun_path, &stat_));
    CHECK_EQUAL(stat_.st_mode & 0777, 0660);
    PASS();
}
