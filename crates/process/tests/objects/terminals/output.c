// object: output that the master of a pseudo-terminal has not read, more than its queue holds, its writer waiting
// status: captured
#include "terminal.h"
#include <pthread.h>

static int slave;

static void *writes(void *unused) {
    (void)unused;
    char bytes[512];
    unsigned char next = 0;
    for (;;) {
        for (size_t at = 0; at < sizeof bytes; at++) bytes[at] = (char)next++;
        put(slave, bytes, sizeof bytes);
    }
    return 0;
}

int main(void) {
    struct pair pair = open_pair();
    slave = pair.slave;
    make_raw(slave);
    pthread_t thread;
    CHECK(!pthread_create(&thread, 0, writes, 0));
    usleep(100000);
    ready();
    unsigned char next = 0;
    while (go_on()) {
        char bytes[300];
        for (size_t at = 0; at < sizeof bytes; at++) bytes[at] = (char)next++;
        expect(pair.master, bytes, sizeof bytes);
    }
    for (int round = 0; round < 200; round++) {
        char bytes[300];
        for (size_t at = 0; at < sizeof bytes; at++) bytes[at] = (char)next++;
        expect(pair.master, bytes, sizeof bytes);
    }
    PASS();
}
