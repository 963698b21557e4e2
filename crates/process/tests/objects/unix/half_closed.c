// object: unix streams of which one side, or one direction, is closed
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/socket.h>

int main(void) {
    int one[2], two[2];
    signal(SIGPIPE, SIG_IGN);
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, one) && !socketpair(AF_UNIX, SOCK_STREAM, 0, two));
    CHECK(!shutdown(one[0], SHUT_WR));
    static char bytes[20000];
    for (unsigned i = 0; i < sizeof bytes; i++) bytes[i] = i % 251;
    CHECK(write(two[0], bytes, sizeof bytes) == sizeof bytes && !close(two[0]));
    ready();
    unsigned count = 0, got;
    char byte;
    do {
        CHECK(read(one[1], &got, 4) == 0);
        CHECK(write(one[0], &count, 4) < 0 && errno == EPIPE);
        CHECK(write(one[1], &count, 4) == 4 && read(one[0], &got, 4) == 4 && got == count);
        CHECK(read(two[1], &byte, 1) == 1);
        CHECK_EQUAL((unsigned char)byte, count % 251);
        CHECK(write(two[1], "x", 1) < 0 && errno == EPIPE);
        count++;
    } while (go_on());
    while (read(two[1], &byte, 1) == 1) CHECK((unsigned char)byte == count++ % 251);
    CHECK_EQUAL(count, sizeof bytes);
    PASS();
}
