// object: a listener for each process on one port (SO_REUSEPORT), watched by epoll
// status: captured
// note:
#include "object.h"

#include <arpa/inet.h>
#include <sys/epoll.h>
#include <sys/socket.h>

int main(void) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(6100), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int on = 1;
    for (int i = 0; i < 3; i++) {
        int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), set = epoll_create1(0);
        CHECK(setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0);
        CHECK(bind(listener, (void *)&here, sizeof here) == 0 && listen(listener, 64) == 0);
        if (fork()) {
            close(listener), close(set);
            continue;
        }
        struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
        CHECK(epoll_ctl(set, EPOLL_CTL_ADD, listener, &event) == 0);
        for (;;) {
            if (epoll_wait(set, &event, 1, -1) != 1) continue;
            int value, fd = event.data.fd;
            if (fd == listener) {
                event.data.fd = accept(listener, 0, 0);
                if (event.data.fd >= 0) CHECK(epoll_ctl(set, EPOLL_CTL_ADD, event.data.fd, &event) == 0);
            } else if (recv(fd, &value, 4, 0) == 4) {
                value += i + 1;
                CHECK(send(fd, &value, 4, MSG_NOSIGNAL) == 4);
            } else {
                CHECK(epoll_ctl(set, EPOLL_CTL_DEL, fd, 0) == 0);
                close(fd);
            }
        }
    }
    int count = 0, used = 0, value;
    ready();
    do {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(connect(fd, (void *)&here, sizeof here) == 0 && send(fd, &count, 4, 0) == 4);
        CHECK_EQUAL(recv(fd, &value, 4, MSG_WAITALL), 4);
        CHECK(value - count >= 1 && value - count <= 3);
        used |= 1 << (value - count);
        close(fd);
        count++;
    } while (go_on());
    CHECK(count < 30 || (used & (used - 1)));
    PASS();
}
