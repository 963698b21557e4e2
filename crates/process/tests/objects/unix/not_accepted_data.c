// object: unix connections that stay unaccepted, by a path and by an abstract name, and have said something already
// status: captured
// note: as of clients of a server that is busy; refused: more than some 3,700 bytes at once, with descriptors or an urgent byte
#include "object.h"
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

static void named(struct sockaddr_un *name, socklen_t *length, const char *path, int hidden) {
    *name = (struct sockaddr_un){.sun_family = AF_UNIX};
    strcpy(name->sun_path + hidden, path);
    *length = hidden ? sizeof(sa_family_t) + 1 + strlen(path) : sizeof *name;
}

int main(void) {
    static char big[3000], bytes[8192];
    int types[] = {SOCK_STREAM, SOCK_STREAM, SOCK_SEQPACKET}, servers[3], accepted[3], clients[3][3], on = 1;
    memset(big, 'b', sizeof big);
    for (int i = 0; i < 3; i++) {
        struct sockaddr_un name;
        socklen_t length;
        named(&name, &length, (const char *[]){"/run/server.sock", "busy-server", "/tmp/packets"}[i], i == 1);
        CHECK((servers[i] = socket(AF_UNIX, types[i], 0)) >= 0 && !bind(servers[i], (void *)&name, length));
        CHECK(!setsockopt(servers[i], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) && !listen(servers[i], 4));
        // One that is being served, while two wait.
        for (int j = 0; j < 3; j++) {
            CHECK((clients[i][j] = socket(AF_UNIX, types[i], 0)) >= 0 && !connect(clients[i][j], (void *)&name, length));
            if (!j) CHECK((accepted[i] = accept(servers[i], 0, 0)) >= 0);
        }
        CHECK(send(clients[i][1], "hello", 5, 0) == 5 && send(clients[i][1], big, sizeof big, 0) == sizeof big);
        CHECK(send(clients[i][2], "bye", 3, 0) == 3 && !shutdown(clients[i][2], SHUT_WR));
    }
    ready();
    long said = 0;
    do {
        for (int i = 0; i < 3; i++) {
            struct pollfd ask = {servers[i], POLLIN, 0};
            CHECK(poll(&ask, 1, 0) == 1);
            CHECK(send(clients[i][0], "x", 1, 0) == 1 && recv(accepted[i], bytes, 8, 0) == 1 && bytes[0] == 'x');
        }
        if (said < 8) CHECK(send(clients[1][1], "more", 4, 0) == 4);
        said += said < 8;
    } while (go_on());
    for (int i = 0; i < 3; i++) {
        int first = accept(servers[i], 0, 0), second = accept(servers[i], 0, 0);
        CHECK(first >= 0 && second >= 0);
        if (types[i] == SOCK_SEQPACKET) {
            CHECK(recv(first, bytes, sizeof bytes, 0) == 5 && !memcmp(bytes, "hello", 5));
            CHECK(recv(first, bytes, sizeof bytes, 0) == sizeof big && !memcmp(bytes, big, sizeof big));
        } else {
            ssize_t length = 5 + sizeof big + (i == 1 ? 4 * said : 0);
            CHECK_EQUAL(recv(first, bytes, sizeof bytes, MSG_WAITALL | MSG_DONTWAIT), length);
            CHECK(!memcmp(bytes, "hellob", 6) && bytes[5 + sizeof big - 1] == 'b');
            if (i == 1 && said) CHECK(!memcmp(bytes + length - 4, "more", 4));
        }
        union { char raw[CMSG_SPACE(sizeof(struct ucred))]; struct cmsghdr align; } control = {0};
        struct iovec part = {bytes, sizeof bytes};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        CHECK(recvmsg(second, &message, 0) == 3 && !memcmp(bytes, "bye", 3));
        struct ucred who;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        CHECK(header && header->cmsg_type == SCM_CREDENTIALS);
        memcpy(&who, CMSG_DATA(header), sizeof who);
        CHECK_EQUAL(who.pid, getpid());
        CHECK(recv(second, bytes, 8, 0) == 0);
        CHECK(send(first, "answer", 6, 0) == 6 && recv(clients[i][1], bytes, 8, 0) == 6 && !memcmp(bytes, "answer", 6));
        CHECK(send(second, "later", 5, 0) == 5 && recv(clients[i][2], bytes, 8, 0) == 5);
        CHECK(send(clients[i][0], "y", 1, 0) == 1 && recv(accepted[i], bytes, 8, 0) == 1 && bytes[0] == 'y');
        struct pollfd none = {servers[i], POLLIN, 0};
        CHECK(poll(&none, 1, 0) == 0);
    }
    PASS();
}
