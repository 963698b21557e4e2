// object: sendfile and splice to a TCP connection under way, waiting for its reader
// status: captured
// note:
#include "object.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/sendfile.h>
#include <sys/socket.h>

enum { SIZE = 1 << 20 };
static int fd[2], file;

static void *feed(void *unused) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    for (;;) {
        for (off_t at = 0; at < SIZE;) CHECK(sendfile(fd[0], file, &at, SIZE - at) > 0);
        for (off_t at = 0; at < SIZE;) {
            ssize_t into = splice(file, &at, ends[1], 0, 30000, 0);
            CHECK(into > 0);
            while (into > 0) {
                ssize_t out = splice(ends[0], 0, fd[0], 0, into, 0);
                CHECK(out > 0);
                into -= out;
            }
        }
    }
    return unused;
}

int main(void) {
    file = open("/tmp/object", O_RDWR | O_CREAT, 0600);
    for (int i = 0; i < SIZE / 4; i++) CHECK(write(file, &i, 4) == 4);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    fd[0] = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof here;
    CHECK(listen(listener, 5) == 0 && getsockname(listener, (void *)&here, &length) == 0);
    CHECK(connect(fd[0], (void *)&here, sizeof here) == 0 && (fd[1] = accept(listener, 0, 0)) >= 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, 0, feed, 0) == 0);
    unsigned next = 0, words[4096];
    ready();
    do {
        for (size_t done = 0; done < sizeof words;) {
            ssize_t count = recv(fd[1], (char *)words + done, sizeof words - done, 0);
            CHECK(count > 0);
            done += count;
        }
        for (int i = 0; i < 4096; i++) CHECK_EQUAL(words[i], next++ % (SIZE / 4));
    } while (go_on());
    PASS();
}
