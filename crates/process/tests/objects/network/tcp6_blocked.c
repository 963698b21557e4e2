// object: TCP over IPv6 with full queues, its writer and its reader waiting
// status: captured
// note:
#include "object.h"

#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>

static int fd[2];
static volatile unsigned long written;

static void *fill(void *unused) {
    static unsigned words[16384];
    for (unsigned next = 0;;) {
        for (int i = 0; i < 16384; i++) words[i] = next++;
        for (size_t done = 0; done < sizeof words;) {
            ssize_t count = write(fd[0], (char *)words + done, sizeof words - done);
            CHECK(count > 0);
            done += count, written += count;
        }
    }
    return unused;
}

int main(void) {
    int listener = socket(AF_INET6, SOCK_STREAM, 0);
    fd[0] = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 here = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    socklen_t length = sizeof here;
    CHECK(bind(listener, (void *)&here, sizeof here) == 0 && listen(listener, 5) == 0);
    CHECK(getsockname(listener, (void *)&here, &length) == 0);
    CHECK(connect(fd[0], (void *)&here, sizeof here) == 0 && (fd[1] = accept(listener, 0, 0)) >= 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, 0, fill, 0) == 0);
    while (written < 200000) usleep(1000);
    unsigned next = 0, words[2000];
    ready();
    do {
        for (size_t done = 0; done < sizeof words;) {
            ssize_t count = recv(fd[1], (char *)words + done, sizeof words - done, 0);
            CHECK(count > 0);
            done += count;
        }
        for (int i = 0; i < 2000; i++) CHECK_EQUAL(words[i], next++);
    } while (go_on());
    PASS();
}
