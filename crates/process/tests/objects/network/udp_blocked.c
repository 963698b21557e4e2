// object: threads waiting in recvfrom, poll and epoll_wait for datagrams
// status: captured
// note:
#include "object.h"

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/socket.h>

static int to[3];
static struct sockaddr_in here[3];

static void *echo(void *argument) {
    int which = (long)argument, fd = to[which], set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) == 0);
    for (;;) {
        struct pollfd poll_for = {fd, POLLIN, 0};
        if (which == 1) while (poll(&poll_for, 1, -1) != 1) {}
        if (which == 2) while (epoll_wait(set, &event, 1, -1) != 1) {}
        struct sockaddr_in peer;
        socklen_t length = sizeof peer;
        unsigned value;
        CHECK_EQUAL(recvfrom(fd, &value, 4, which ? MSG_DONTWAIT : 0, (void *)&peer, &length), 4);
        value++;
        CHECK(sendto(fd, &value, 4, 0, (void *)&peer, length) == 4);
    }
    return 0;
}

int main(void) {
    for (long i = 0; i < 3; i++) {
        here[i] = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
        to[i] = socket(AF_INET, SOCK_DGRAM, 0);
        socklen_t length = sizeof here[i];
        CHECK(bind(to[i], (void *)&here[i], length) == 0 && getsockname(to[i], (void *)&here[i], &length) == 0);
        pthread_t thread;
        CHECK(pthread_create(&thread, 0, echo, (void *)i) == 0);
    }
    int out = socket(AF_INET, SOCK_DGRAM, 0);
    unsigned count = 0, value;
    ready();
    do {
        count++;
        CHECK(sendto(out, &count, 4, 0, (void *)&here[count % 3], sizeof *here) == 4);
        CHECK_EQUAL(recv(out, &value, 4, 0), 4);
        CHECK_EQUAL(value, count + 1);
    } while (go_on());
    PASS();
}
