// object: output of a pseudo-terminal stopped by a character (^S), its writer waiting, and let go on (^Q)
// status: captured
#include "terminal.h"

int main(void) {
    struct pair pair = open_pair();
    int lines[2];
    CHECK(!pipe(lines));
    if (fork() == 0) {
        for (unsigned round = 0;; round++) {
            char line[32];
            put(pair.slave, line, snprintf(line, sizeof line, "%u\n", round));
            put(lines[1], "x", 1);
        }
    }
    ready();
    unsigned round = 0;
    int more;
    do {
        put(pair.master, "\x13", 1);
        more = go_on();
        // Some was on its way; then it is quiet.
        usleep(5000);
        char bytes[4096], done[4096];
        int fl = fcntl(pair.master, F_GETFL);
        fcntl(pair.master, F_SETFL, fl | O_NONBLOCK);
        fcntl(lines[0], F_SETFL, O_NONBLOCK);
        while (read(pair.master, bytes, sizeof bytes) > 0) usleep(1000);
        while (read(lines[0], done, sizeof done) > 0) {}
        more = go_on() && more;
        CHECK_EQUAL(read(pair.master, bytes, sizeof bytes), -1);
        CHECK_EQUAL(read(lines[0], done, sizeof done), -1);
        fcntl(pair.master, F_SETFL, fl);
        put(pair.master, "\x11", 1);
        wait_readable(pair.master);
        round++;
    } while (more);
    PASS();
}
