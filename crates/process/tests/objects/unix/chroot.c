// object: unix sockets with paths told from another root (`chroot`), from a working directory, and through a symbolic link
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static struct sockaddr_un named(const char *path) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    strcpy(name.sun_path, path);
    return name;
}

static int listening(const char *path) {
    struct sockaddr_un name = named(path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(!bind(fd, (void *)&name, sizeof name) && !listen(fd, 8) && !chmod(path, 0640));
    return fd;
}

static void talk(int server, const char *path) {
    struct sockaddr_un name = named(path), told = {0};
    socklen_t length = sizeof told;
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(client, (void *)&name, sizeof name)) FAIL("connect to %s", path);
    int accepted = accept(server, 0, 0);
    char byte = 'q';
    CHECK(accepted >= 0 && write(client, &byte, 1) == 1 && read(accepted, &byte, 1) == 1 && byte == 'q');
    CHECK(!getsockname(accepted, (void *)&told, &length));
    close(client);
    close(accepted);
}

int main(void) {
    struct stat node;
    CHECK(!mkdir("/run/jail", 0755) && !mkdir("/run/jail/run", 0755) && !chdir("/run/jail"));
    int before = listening("/run/jail/before"), through = listening("/var/run/through");
    int relative = listening("run/relative");
    int datagrams = socket(AF_UNIX, SOCK_DGRAM, 0), sender = socket(AF_UNIX, SOCK_DGRAM, 0);
    CHECK(!chroot("/run/jail"));
    int after = listening("/run/after");
    struct sockaddr_un name = named("/run/log"), got;
    CHECK(!bind(datagrams, (void *)&name, sizeof name) && !connect(sender, (void *)&name, sizeof name));
    // Connections that stay, of which each kind of name is asked.
    struct sockaddr_un of_after = named("/run/after");
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(!connect(client, (void *)&of_after, sizeof of_after));
    int accepted = accept(after, 0, 0);
    CHECK(accepted >= 0 && write(client, "waits", 5) == 5);
    ready();
    do {
        talk(before, "/before");
        talk(relative, "/run/relative");
        talk(after, "/run/after");
        socklen_t length = sizeof got;
        CHECK(!getsockname(relative, (void *)&got, &length) && !strcmp(got.sun_path, "run/relative"));
        length = sizeof got;
        CHECK(!getsockname(through, (void *)&got, &length) && !strcmp(got.sun_path, "/var/run/through"));
        length = sizeof got;
        CHECK(!getpeername(client, (void *)&got, &length) && !strcmp(got.sun_path, "/run/after"));
        CHECK(!stat("/run/after", &node) && S_ISSOCK(node.st_mode) && (node.st_mode & 0777) == 0640);
        CHECK(!stat("/before", &node) && S_ISSOCK(node.st_mode) && (node.st_mode & 0777) == 0640);
        char byte;
        CHECK(write(sender, "m", 1) == 1 && read(datagrams, &byte, 1) == 1);
    } while (go_on());
    char text[8];
    CHECK(read(accepted, text, 8) == 5 && !memcmp(text, "waits", 5));
    PASS();
}
