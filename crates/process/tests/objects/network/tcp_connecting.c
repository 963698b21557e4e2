// object: a connect under way, of a socket that does not wait for it, and of a thread that does
// status: captured
// note: the handshake begins again; a limit by SO_SNDTIMEO does too
#include "object.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>

static struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {0x0100007f}};
static volatile int connected;

static void *wait_for_it(void *unused) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    int result = connect(fd, (void *)&here, sizeof here);
    if (result) FAIL("connect");
    connected = 1;
    for (;;) pause();
    return unused;
}

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    socklen_t length = sizeof here;
    // No SYN gets through.
    struct sock_filter no = {BPF_RET | BPF_K, 0, 0, 0};
    struct sock_fprog program = {1, &no};
    CHECK(setsockopt(listener, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
    CHECK(bind(listener, (void *)&here, sizeof here) == 0 && listen(listener, 5) == 0);
    CHECK(getsockname(listener, (void *)&here, &length) == 0);
    CHECK(connect(client, (void *)&here, sizeof here) == -1 && errno == EINPROGRESS);
    pthread_t thread;
    CHECK(pthread_create(&thread, 0, wait_for_it, 0) == 0);
    ready();
    struct pollfd wait = {client, POLLOUT, 0};
    do {
        CHECK_EQUAL(poll(&wait, 1, 0), 0);
        CHECK(connect(client, (void *)&here, sizeof here) == -1 && errno == EALREADY);
        CHECK(!connected);
    } while (go_on());
    CHECK(setsockopt(listener, SOL_SOCKET, SO_DETACH_FILTER, &no, sizeof no) == 0);
    CHECK_EQUAL(poll(&wait, 1, 20000), 1);
    int error;
    length = sizeof error;
    CHECK(getsockopt(client, SOL_SOCKET, SO_ERROR, &error, &length) == 0);
    CHECK_EQUAL(error, 0);
    for (int i = 0; i < 2000 && !connected; i++) usleep(10000);
    CHECK(connected && accept(listener, 0, 0) >= 0 && accept(listener, 0, 0) >= 0);
    PASS();
}
