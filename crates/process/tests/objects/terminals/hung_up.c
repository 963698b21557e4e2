// object: descriptors of a pseudo-terminal whose master was closed: at their end, and its session told (SIGHUP)
// status: captured
#include "terminal.h"

static volatile sig_atomic_t hangups;

static void count(int signal) {
    (void)signal;
    hangups++;
}

int main(void) {
    struct pair pair = open_pair();
    int answers[2], asked[2];
    CHECK(!pipe(answers) && !pipe(asked));
    if (fork() == 0) {
        close(pair.master);
        setsid();
        int tty = open(pair.name, O_RDWR);
        signal(SIGHUP, count);
        put(answers[1], "r", 1);
        char byte;
        for (;;) {
            ssize_t got = read(asked[0], &byte, 1);
            if (got != 1) continue;
            CHECK_EQUAL(hangups, 1);
            CHECK_EQUAL(read(tty, &byte, 1), 0);
            CHECK_EQUAL(write(tty, "x", 1), -1);
            CHECK_EQUAL(errno, EIO);
            CHECK_EQUAL(open("/dev/tty", O_RDWR), -1);
            CHECK_EQUAL(errno, ENXIO);
            put(answers[1], "a", 1);
        }
    }
    expect(answers[0], "r", 1);
    close(pair.master);
    ready();
    // Its number stays in use.
    int more;
    do {
        more = go_on();
        put(asked[1], "?", 1);
        expect(answers[0], "a", 1);
        char byte;
        CHECK_EQUAL(read(pair.slave, &byte, 1), 0);
        struct pair other = open_pair();
        CHECK(strcmp(other.name, pair.name));
        close(other.slave);
        close(other.master);
    } while (more);
    PASS();
}
